"""`attachfs ls` and `login` on real mounts."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

from attachfs.demo.spawn import DemoServer, spawn_server
from tests.mount.conftest import Mount, Program


def test_a_listing_shows_what_is_recorded_and_downloads_nothing(
    attachfs: Program, mount: Mount, ledger: DemoServer
) -> None:
    with mount() as mounted:
        story = {name: mounted.point / path for name, path in ledger.story.items()}
        done = attachfs("ls", "--json", "-R", mounted.point / "assets", check=3)
        assert "Permission denied" in done.stderr  # the story has a file that the ledger shows to nobody
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        by_path = {line["path"]: line for line in lines}
        photo, infected, tampered = (by_path[str(story[one])] for one in ("photo", "infected", "tampered"))
        assert photo["size"] == story["photo"].stat().st_size
        assert photo["mime_type"] == "image/jpeg"
        assert (photo["scan"], photo["cached"]) == ("OK", "no")
        assert infected["scan"] == "BAD"
        assert tampered["kind"] == "attachment"
        assert {line["kind"] for line in lines} == {"asset", "event", "attachment", "directory", "unknown"}
        assert mounted.counts().get("blob", 0) == 0
        story["photo"].read_bytes()
        shown = attachfs("ls", story["photo"], story["photo"].parent, check=0).stdout
        assert shown.splitlines()[0].split() == ["name", "size", "type", "date", "scan", "attested", "cached"]
        row = next(line for line in shown.splitlines() if line.startswith(str(story["photo"])))
        assert row.endswith("yes")
        by_name = mounted.point / "by-name"
        assert "MV Northern Tern/" in attachfs("ls", by_name, check=0).stdout
        done = attachfs("ls", mounted.point / "assets" / "nothing", check=2)
        assert "No such file" in done.stderr
        assert "not on an attachfs mount" in attachfs("ls", "/proc", check=2).stderr


def log_in(program: Program, url: str, secret: str, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "attachfs", "login", "--url", url, *options],
        input=secret,
        capture_output=True,
        text=True,
        env=program.environ,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert not secret.strip() or secret.strip() not in done.stdout + done.stderr
    return done


def test_login_stores_what_the_ledger_accepts_and_nothing_else(
    attachfs: Program, ledger: DemoServer, tmp_path: Path
) -> None:
    assert ledger.token_file is not None
    token = ledger.token_file.read_text().strip()
    stored = tmp_path / ".datatrails" / "bearer-token.txt"
    refused = log_in(attachfs, ledger.url, "forged")
    assert refused.returncode == 1
    assert "nothing was stored" in refused.stderr
    assert "give all of a token that is for this ledger (--url)" in refused.stderr
    assert list(stored.parent.iterdir()) == []
    expired = log_in(attachfs, ledger.url, "e30.eyJleHAiOjF9.x")
    assert expired.returncode == 1
    assert "the token expired at 1970-01-01" in expired.stderr
    away = log_in(attachfs, "http://127.0.0.1:1", token)
    assert away.returncode == 1
    assert away.stderr.count("\n") == 1  # that the token could not be tried either goes without saying
    assert "Connection refused" in away.stderr
    in_clear = log_in(attachfs, "http://ledger.example", token)
    assert in_clear.returncode == 2
    assert "--insecure-http" in in_clear.stderr
    for done in (refused, expired, away, in_clear):  # doctor's words, and a file that is gone by then
        assert not re.search(r"attachfs login|\.bearer-token|--no-auth|see the line", done.stderr)
    assert "is a directory" in log_in(attachfs, ledger.url, token, "--token-file", str(tmp_path)).stderr
    for nothing, word in (("", "nothing was given"), ("a\nb", "one line"), ("t\u00f6ken", "one line")):
        assert word in log_in(attachfs, ledger.url, nothing).stderr
    assert list(stored.parent.iterdir()) == []
    done = log_in(attachfs, ledger.url, f"{token}\n")
    assert done.returncode == 0, done.stderr
    assert str(stored) in done.stderr
    assert stored.read_text().strip() == token
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert stat.S_IMODE(stored.parent.stat().st_mode) == 0o700
    point = tmp_path / "mnt"
    point.mkdir()
    attachfs("mount", "--url", ledger.url, point, check=0)
    try:
        assert list((point / "assets").iterdir())
    finally:
        attachfs("umount", point, check=0)


def test_login_stores_an_applications_secret_and_has_mounts_use_it(attachfs: Program, tmp_path: Path) -> None:
    with spawn_server(["--empty", "--client-id", "me", "--client-secret", "hush-hush"]) as server:
        refused = log_in(attachfs, server.url, "wrong-one", "--client-id", "me")
        assert refused.returncode == 1
        assert "nothing was stored" in refused.stderr
        assert "check --client-id and --url, and give the client's secret again" in refused.stderr
        done = log_in(attachfs, server.url, "hush-hush\n", "--client-id", "me")
        assert done.returncode == 0, done.stderr
        [stored] = (tmp_path / "config" / "attachfs").glob("*.secret")
        assert stored.read_text().strip() == "hush-hush"
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
        config = tmp_path / "config" / "attachfs" / "config.toml"
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        point = tmp_path / "mnt"
        point.mkdir()
        attachfs("mount", point, check=0)  # address, application and secret are in the file now
        try:
            assert (point / "assets").is_dir()
            assert list((point / "assets").iterdir()) == []
        finally:
            attachfs("umount", point, check=0)
        again = log_in(attachfs, server.url, "hush-hush", "--client-id", "me")
        assert again.returncode == 0
