"""The commands on real mounts: mounting in the background and its refusals, and what works on files there."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from attachfs.demo.spawn import DemoServer, spawn_server
from tests.mount.conftest import Mount, Mounted, Program, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, identity, send, serve

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, ledger: DemoServer) -> Iterator[Mounted]:
    with run_mount(tmp_path_factory.mktemp("commands"), server=ledger) as mounted:
        yield mounted


def good_asset(mounted: Mounted, server: DemoServer) -> Path:
    """Return an asset with files all of which can be read."""
    bad = {server.story[name].split("/")[1] for name in ("tampered", "infected")}
    for asset in sorted((mounted.point / "assets").iterdir()):
        files = [path for path in asset.rglob("*-*") if path.is_file()]
        if asset.name not in bad and len(files) >= 2:
            return asset
    raise AssertionError("no such asset")


# -- mount, umount -------------------------------------------------------------------------------------


def test_mount_returns_once_it_answers_and_umount_once_it_has_ended(
    attachfs: Program, ledger: DemoServer, tmp_path: Path
) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    options = ("--url", ledger.url, "--token-file", ledger.token_file)
    attachfs("mount", *options, point, check=0)
    try:
        assert {path.name for path in point.iterdir()} >= {"assets", "publicassets"}
        pid = json.loads(os.getxattr(point, "user.attachfs.status"))["pid"]
        done = attachfs("mount", *options, point, check=2)
        assert "is mounted already" in done.stderr
        other = tmp_path / "other"
        other.mkdir()
        done = attachfs("mount", *options, other, check=2)
        assert f"in use by process {pid}" in done.stderr
        assert str(point) in done.stderr
        assert "--cache-dir" in done.stderr
        file = next(path for path in (point / "assets").rglob("*-*") if path.is_file())
        with file.open("rb") as opened:
            done = attachfs("umount", point, check=1)
            assert "cannot unmount" in done.stderr
            assert f"attachfs umount --lazy {point}" in done.stderr
            attachfs("umount", "--lazy", point, check=0)
            assert not any(point.iterdir())
            assert len(opened.read()) == os.fstat(opened.fileno()).st_size
    finally:
        subprocess.run(["umount", "-lq", point], check=False)
    done = attachfs("umount", point, check=2)
    assert "is not an attachfs mount" in done.stderr


def test_what_cannot_be_mounted_is_told_with_exit_code_2(
    attachfs: Program, ledger: DemoServer, tmp_path: Path
) -> None:
    point, plain = tmp_path / "mnt", tmp_path / "plain"
    point.mkdir()
    plain.touch()
    token = tmp_path / "open-token"
    token.write_text("t0ken\n")
    token.chmod(0o644)
    good = ("--url", ledger.url, "--token-file", ledger.token_file)
    for options, where, said in (
        (good, tmp_path / "missing", "does not exist"),
        (good, plain, "is not a directory"),
        (("--url", ledger.url, "--token-file", tmp_path / "none"), point, "does not exist"),
        (("--url", ledger.url, "--token-file", token), point, "chmod 600"),
        (("--url", "ftp://x", "--no-auth"), point, "--url: 'ftp://x' is not an http or https address"),
        ((*good, "--cache-size", "lots"), point, "--cache-size: 'lots' is not a size"),
        ((*good, "--verify", "maybe"), point, "--verify"),
        ((*good, "-o", "nonsense=1"), point, "-o nonsense: no such option"),
        ((*good, "--cache-dir", point / "cache"), point, "is below the mount point"),
        ((*good, "--cache-dir", plain), point, "--cache-dir"),
    ):
        done = attachfs("mount", *options, where, check=2)
        assert said in done.stderr
        assert done.stderr.startswith("attachfs: ")
        assert not os.path.ismount(point)


# -- info, manifest, verify, prefetch ------------------------------------------------------------------


def test_info_as_table_and_as_json(attachfs: Program, shared: Mounted, ledger: DemoServer) -> None:
    photo = shared.point / ledger.story["photo"]
    other = next(path for path in good_asset(shared, ledger).rglob("*-*") if path.is_file())
    ledger.reset()
    facts = attachfs("info", photo, check=0).stdout
    digest = os.getxattr(photo, "user.attachment.hash.value").decode()
    assert digest in facts
    assert "match" in facts
    table = attachfs("info", photo, other, check=0).stdout.splitlines()
    assert table[0].split() == ["path", "size", "hash", "type", "scan", "accepted", "attested", "cached"]
    assert len(table) == 3
    told = [json.loads(line) for line in attachfs("info", "--json", photo, photo.parent).stdout.splitlines()]
    assert [one["kind"] for one in told] == ["attachment", "event" if "events" in str(photo) else "asset"]
    assert told[0]["record"]["hash"]["value"] == digest
    attachfs("info", photo, shared.point / "assets" / "none", check=3)
    assert shared.counts().get("blob", 0) == 0


def test_nothing_of_the_ledgers_steers_the_terminal(attachfs: Program, tmp_path: Path) -> None:
    scripted = ScriptedLedger()
    paths = [scripted.add(name, name.encode()) for name in ("one", "two")]
    for name in ("one", "two"):
        scripted.infos[identity(name)]["mime_type"] = "text/\x1b]0;gone\x07\x1b[2J\u202egpj\x9b31m"
    with serve(scripted, tmp_path / "token") as served, run_mount(tmp_path, server=served) as mounted:
        files = [mounted.point / path for path in paths]
        for arguments in (["info", *files], ["info", files[0]], ["info", "--json", *files]):
            printed = attachfs(*arguments, check=0).stdout
            assert all(line.isprintable() for line in printed.splitlines()), printed
            assert "u202e" in printed


def test_manifest_is_what_sha256sum_checks_a_copy_with(
    attachfs: Program, shared: Mounted, ledger: DemoServer, tmp_path: Path
) -> None:
    asset = good_asset(shared, ledger)
    ledger.reset()
    sums = attachfs("manifest", asset, check=0).stdout
    assert shared.counts().get("blob", 0) == 0
    shutil.copytree(asset, tmp_path / "copy")
    checked = subprocess.run(
        ["sha256sum", "-c", "--strict"],
        input=sums,
        cwd=tmp_path / "copy",
        capture_output=True,
        text=True,
        check=True,
    )
    files = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert checked.stdout.count(": OK\n") == len(files) > 1
    told = [json.loads(line) for line in attachfs("manifest", "--json", asset).stdout.splitlines()]
    assert {f"{one['hash']['value']}  {one['path']}" for one in told} == set(sums.splitlines())


def test_verify_of_a_mount_names_what_is_wrong_there(
    attachfs: Program, shared: Mounted, ledger: DemoServer
) -> None:
    asset = good_asset(shared, ledger)
    done = attachfs("verify", asset, check=0)
    assert done.stdout.count(": OK\n") == len(done.stdout.splitlines()) > 1
    tampered, infected = (shared.point / ledger.story[name] for name in ("tampered", "infected"))
    done = attachfs("verify", asset, infected, check=3)
    assert f"{infected}: COULD NOT TELL: the mount refuses it (Operation not permitted)" in done.stdout
    done = attachfs("verify", asset, tampered, infected, check=1)
    assert f"{tampered}: DIFFERS: the mount refuses it (Bad message)" in done.stdout
    assert "1 differ, 1 unknown" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may bind")
def test_verify_beside_a_bind_mount_of_a_part_asks_the_mount_of_the_whole(
    attachfs: Program, shared: Mounted, ledger: DemoServer
) -> None:
    """Both of copies and of files below the part: it has the mount's device, and not its tree."""
    asset = good_asset(shared, ledger)
    with tempfile.TemporaryDirectory(dir=shared.point.parent) as where:
        part, copy = Path(where) / "part", Path(where) / "copy"
        part.mkdir()
        subprocess.run(["cp", "-a", asset, copy], check=True)
        subprocess.run(["mount", "--bind", shared.point / "assets", part], check=True)
        try:
            for files in (copy, part / asset.name):
                done = attachfs("verify", "--live", files, check=0)
                assert done.stdout.count(": OK\n") == len(done.stdout.splitlines()) > 1
        finally:
            subprocess.run(["umount", part], check=True)


def test_verify_of_loose_copies_asks_the_ledger_itself(
    attachfs: Program, shared: Mounted, ledger: DemoServer
) -> None:
    asset = good_asset(shared, ledger)
    # Not below /tmp where that is a filesystem without extended attributes of users.
    with tempfile.TemporaryDirectory(dir=shared.point.parent) as where:
        copy = Path(where) / "copy"
        subprocess.run(["cp", "-a", asset, copy], check=True)
        done = attachfs("verify", "--live", copy, check=0)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        assert done.stdout.splitlines() == [f"{path}: OK" for path in files]
        victim = files[0]
        victim.chmod(0o600)
        with victim.open("r+b") as file:
            byte = file.read(1)[0]
            file.seek(0)
            file.write(bytes([byte ^ 1]))
        done = attachfs("verify", copy, check=1)
        assert f"{victim}: DIFFERS: its bytes hash to" in done.stdout
        assert done.stdout.count(": OK\n") == len(files) - 1
        # Whoever changes the copy's record along with it is found out by the ledger.
        hashed = subprocess.run(["sha256sum", victim], capture_output=True, text=True, check=True).stdout
        os.setxattr(victim, "user.attachment.hash.value", hashed.split()[0].encode())
        told = json.loads(attachfs("verify", "--json", victim, check=1).stdout)
        assert told["live"] is True
        assert "the ledger records" in told["reason"]


def test_verify_believes_neither_the_kernels_memory_nor_the_cache(
    attachfs: Program, mount: Mount, ledger: DemoServer
) -> None:
    with mount() as mounted:
        photo = mounted.point / ledger.story["photo"]
        right = photo.read_bytes()
        (blob,) = mounted.cached()
        status = blob.stat()
        with blob.open("r+b") as file:
            file.seek(len(right) // 2)
            file.write(bytes([right[len(right) // 2] ^ 1]))
        os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would leave it
        assert photo.read_bytes() == right  # from the kernel's memory
        done = attachfs("verify", photo, check=1)
        assert f"{photo}: DIFFERS: its bytes hash to" in done.stdout
        attachfs("cache", "verify", "--cache-dir", mounted.cache, check=1)
        attachfs("verify", photo, check=0)  # fetched again
        assert photo.read_bytes() == right


def test_prefetch_fills_the_cache_once(attachfs: Program, mount: Mount, ledger: DemoServer) -> None:
    with mount() as mounted:
        asset = good_asset(mounted, ledger)
        ledger.reset()
        done = attachfs("prefetch", asset, check=0)
        assert ", 0 already there" in done.stderr
        files = [path for path in asset.rglob("*-*") if path.is_file()]
        assert {os.getxattr(path, "user.attachfs.cached") for path in files} == {b"yes"}
        assert mounted.counts()["blob"] >= 1
        ledger.reset()
        done = attachfs("prefetch", "--jobs=2", asset, check=0)
        assert f"0 files fetched (0 B), {len(files)} already there" in done.stderr
        assert sum(mounted.counts().values()) == 0
        done = attachfs("prefetch", mounted.point / ledger.story["tampered"], check=1)
        assert "1 differ" in done.stderr


def test_prefetch_says_what_cannot_be_kept(attachfs: Program, mount: Mount, ledger: DemoServer) -> None:
    with mount("--cache-size=200K") as mounted:
        done = attachfs("prefetch", mounted.point / ledger.story["footage"], check=3)
        assert "the cache has no room for it" in done.stderr
        assert "1 not kept" in done.stderr
        assert "--cache-size" in done.stderr
    with mount("--verify=off") as mounted:
        assert "--verify=off" in attachfs("prefetch", mounted.point, check=2).stderr


def test_prefetch_is_interrupted_at_once_and_goes_on_later(attachfs: Program, tmp_path: Path) -> None:
    scripted = ScriptedLedger()
    first, second = scripted.add("first", b"1" * 5000), scripted.add("second", b"2" * 5000)
    held = identity("second")

    def hold(request: Handler) -> bool:
        if held not in request.path:
            return False
        with scripted.changed:
            scripted.changed.wait_for(lambda: "blob" not in scripted.bend, 30)
        return False

    scripted.bend["blob"] = hold
    with serve(scripted, tmp_path / "token") as served, run_mount(tmp_path, server=served) as mounted:
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "attachfs",
                "prefetch",
                "-j1",
                mounted.point / first,
                mounted.point / second,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=attachfs.environ,
        ) as process:
            scripted.wait_for(lambda: scripted.counts["blob"] == 2)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "prefetch: interrupted; 1 file fetched" in said
        assert "Traceback" not in said
        with scripted.changed:
            del scripted.bend["blob"]
            scripted.changed.notify_all()
        done = attachfs("prefetch", mounted.point / "assets", check=0)
        assert "already there" in done.stderr
        assert (mounted.point / second).read_bytes() == b"2" * 5000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["info", "verify", "prefetch", "manifest"])
def test_a_silent_service_holds_up_no_exit(
    attachfs: Program, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    scripted = ScriptedLedger()
    path = scripted.add("file", b"1" * 5000)

    def hold(_: Handler) -> bool:
        with scripted.changed:
            scripted.changed.wait_for(lambda: "info" not in scripted.bend, 60)
        return False

    with serve(scripted, tmp_path / "token") as served, run_mount(tmp_path, server=served) as mounted:
        scripted.bend["info"] = hold
        with subprocess.Popen(
            [sys.executable, "-m", "attachfs", command, mounted.point / path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=attachfs.environ,
        ) as process:
            try:
                scripted.wait_for(lambda: scripted.counts["info"] >= 1)
                began = time.monotonic()
                process.send_signal(number)
                _, said = process.communicate(timeout=50)
                took = time.monotonic() - began
            finally:
                with scripted.changed:
                    del scripted.bend["info"]
                    scripted.changed.notify_all()
        says = number == signal.SIGINT or command == "verify"  # which notes its end in the custody log
        assert process.returncode == (128 + number if says else -number)
        assert ("interrupted" in said) == says
        assert "Traceback" not in said
        assert took < 5  # a second, and what a busy machine makes of it; not the --timeout of 60


# -- cache, pins ---------------------------------------------------------------------------------------


def test_cache_commands_work_beside_a_mount(attachfs: Program, mount: Mount, ledger: DemoServer) -> None:
    with mount() as mounted:
        where = ("--cache-dir", mounted.cache)
        photo = mounted.point / ledger.story["photo"]
        right = photo.read_bytes()
        told = json.loads(attachfs("cache", "stat", "--json", *where, check=0).stdout)
        assert told["blobs"] == 1
        assert told["held_by"] == {"pid": mounted.process.pid, "doing": f"the mount {mounted.point}"}
        (blob,) = mounted.cached()
        with blob.open("r+b") as file:
            file.seek(len(right) // 2)
            file.write(bytes([right[len(right) // 2] ^ 1]))
        done = attachfs("cache", "verify", *where, check=1)
        assert f"sha256:{blob.name}: DIFFERS" in done.stdout
        assert os.getxattr(photo, "user.attachfs.cached") == b"no"
        attachfs("verify", photo, check=0)
        with photo.open("rb") as opened:
            attachfs("cache", "clear", "--yes", *where, check=0)
            assert opened.read() == right
        assert mounted.cached() == []
        attachfs("cache", "verify", *where, check=0)


def test_a_changed_record_is_released_by_name_and_then_opens(attachfs: Program, tmp_path: Path) -> None:
    scripted = ScriptedLedger()
    path = scripted.add("report", b"first")
    with serve(scripted, tmp_path / "token") as served:
        with run_mount(tmp_path, server=served) as mounted:
            assert (mounted.point / path).read_bytes() == b"first"
        scripted.add("report", b"another")
        with run_mount(tmp_path, server=served) as mounted:
            with pytest.raises(OSError, match="Bad message"):
                (mounted.point / path).read_bytes()
            told = json.loads(attachfs("pins", "conflicts", "--json", check=1).stdout)
            assert told["key"].endswith(identity("report"))
            attachfs("pins", "release", told["key"], check=1)  # nobody says yes
            attachfs("pins", "release", "--yes", told["key"], check=0)
            attachfs("pins", "conflicts", check=0)
        with run_mount(tmp_path, server=served) as mounted:
            assert (mounted.point / path).read_bytes() == b"another"


# -- doctor --------------------------------------------------------------------------------------------


def test_doctor_finds_a_good_set_up_good(attachfs: Program, mount: Mount, ledger: DemoServer) -> None:
    options = ("--url", ledger.url, "--token-file", ledger.token_file)
    with mount() as mounted:
        code, told = attachfs.doctor(*options, "--cache-dir", mounted.cache)
        assert told["ledger"]["state"] == told["credentials"]["state"] == "ok"
        assert told["cache"]["state"] == "note"
        assert str(mounted.process.pid) in told["cache"]["detail"]
        assert "--cache-dir" in told["cache"]["remedy"]
        assert told["mount"]["state"] == "ok"
        assert code == 0, told


def test_doctor_tells_credentials_troubles_apart(
    attachfs: Program, ledger: DemoServer, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    url = ("--url", ledger.url, "--token-file", token)

    def credentials(code: int = 1) -> dict[str, str]:
        found, told = attachfs.doctor(*url)
        assert found == code
        assert told["ledger"]["state"] == "ok"
        assert told["credentials"]["state"] == "WRONG"
        return told["credentials"]

    assert "does not exist" in credentials()["detail"]
    token.write_text("wr0ng-token\n")
    token.chmod(0o640)
    found = credentials()
    assert "can be read by other users" in found["detail"]
    assert f"chmod 600 {token}" in found["remedy"]
    token.chmod(0o600)
    found = credentials()
    assert "(401)" in found["detail"]
    assert "attachfs login" in found["remedy"]
    # {"alg":"none"} . {"exp":1000000000} . x
    token.write_text("eyJhbGciOiJub25lIn0.eyJleHAiOjEwMDAwMDAwMDB9.eA\n")
    found = credentials()
    assert "expired at 2001-09-09T01:46:40Z" in found["detail"]
    assert "attachfs login" in found["remedy"]
    token.write_text("two\nlines\n")
    assert "line" in credentials()["detail"]
    code, told = attachfs.doctor("--url", ledger.url, "--no-auth")
    assert (code, told["credentials"]["state"]) == (0, "ok")


def test_doctor_tells_a_refused_port_and_another_service_apart(
    attachfs: Program, ledger: DemoServer, tmp_path: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        code, told = attachfs.doctor("--no-auth", "--url", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert code == 1
    assert "Connection refused" in told["ledger"]["detail"]
    assert "nothing listens there" in told["ledger"]["remedy"]
    # The right port, and not the language it speaks.
    _, told = attachfs.doctor("--no-auth", "--url", ledger.url.replace("http:", "https:"))
    assert "does not speak TLS" in told["ledger"]["remedy"]
    scripted = ScriptedLedger()

    def page(request: Handler) -> bool:
        send(request, 200, b"<html>Welcome to another service</html>", "text/html")
        return True

    def limited(request: Handler) -> bool:
        request.send_response(429)
        request.send_header("Retry-After", "600")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    def unwell(request: Handler) -> bool:
        send(request, 500, b"")
        return True

    with serve(scripted, tmp_path / "token") as served:
        options = ("--url", served.url, "--token-file", served.token_file)
        assert attachfs.doctor(*options)[0] == 0
        scripted.bend["assets"] = page
        code, told = attachfs.doctor(*options)
        assert (code, told["ledger"]["state"]) == (1, "WRONG")
        assert "something other than a ledger" in told["ledger"]["remedy"]
        scripted.bend["assets"] = limited
        code, told = attachfs.doctor(*options)
        assert (code, told["ledger"]["state"], told["credentials"]["state"]) == (3, "unknown", "unknown")
        assert "limits the rate" in told["ledger"]["detail"]
        assert "higher limit" in told["ledger"]["remedy"]
        scripted.bend["assets"] = unwell
        code, told = attachfs.doctor(*options)
        assert code == 3
        assert "try again later" in told["ledger"]["remedy"]


@contextmanager
def tls(base: Path, *names: str) -> Iterator[tuple[DemoServer, Path]]:
    """Serve with a certificate for `names`, and give the file with the authority that signed it."""
    authority = trustme.CA()
    certificate = authority.issue_cert(*names)
    chain, key, ca_file = base / "chain.pem", base / "key.pem", base / "ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca_file)
    files = ["--tls-cert", str(chain), "--tls-key", str(key), "--token-file", str(base / "tls-token")]
    with spawn_server(["--bulk", "1", *files]) as server:
        yield server, ca_file


def test_doctor_tells_tls_troubles_apart(attachfs: Program, tmp_path: Path) -> None:
    with tls(tmp_path, "127.0.0.1") as (server, ca_file):
        options = ("--url", server.url, "--token-file", server.token_file)
        code, told = attachfs.doctor(*options, "--ca-file", ca_file)
        assert (code, told["ledger"]["state"], told["credentials"]["state"]) == (0, "ok", "ok")
        code, told = attachfs.doctor(*options)
        assert (code, told["ledger"]["state"]) == (1, "WRONG")
        assert "the certificate is refused" in told["ledger"]["detail"]
        assert "--ca-file" in told["ledger"]["remedy"]
        _, told = attachfs.doctor(
            *options, "--ca-file", ca_file, "--url", server.url.replace("https:", "http:")
        )
        assert "https://" in told["ledger"]["remedy"]
        told = attachfs.doctor(*options, "--ca-file", tmp_path / "none.pem")[1]
        assert "--ca-file" in told["ledger"]["detail"]
    with tls(tmp_path, "elsewhere.example") as (server, ca_file):
        options = ("--url", server.url, "--token-file", server.token_file)
        told = attachfs.doctor(*options, "--ca-file", ca_file)[1]
        assert "another host's" in told["ledger"]["remedy"]


def test_doctor_finds_a_dead_mount_and_its_remedy_works(
    attachfs: Program, ledger: DemoServer, tmp_path: Path
) -> None:
    with run_mount(tmp_path, server=ledger) as mounted:
        mounted.process.kill()
        mounted.process.wait()
        code, told = attachfs.doctor("--url", ledger.url, "--token-file", ledger.token_file)
        assert code == 1
        assert "is dead" in told["mount"]["detail"]
        program, command, point = told["mount"]["remedy"].split()
        assert (program, point) == ("attachfs", str(mounted.point))
        attachfs(command, point, check=0)
        assert not os.path.ismount(mounted.point)
