"""The commands without a mount: what they print, what they refuse, and their exit codes."""

import errno
import hashlib
import json
import os
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from attachfs.blobs.pins import Pins
from attachfs.cache.disk_cache import DiskCache
from attachfs.cache.lock_file import lock_holder
from attachfs.cli import doctor, doctor_ledger, manifest, output, status, tour
from attachfs.cli import main as cli_main
from attachfs.cli.findings import Finding, State
from attachfs.cli.parallel import in_order
from attachfs.cli.paths import Mounts, copied_record, walk
from attachfs.cli.progress import Progress
from attachfs.errors import (
    AccessDenied,
    BadAnswer,
    NotFound,
    RateLimited,
    TimedOut,
    Unreachable,
)
from attachfs.model import Digest
from attachfs.mount import mountinfo
from attachfs.mount.mountinfo import Mount
from attachfs.units import MinFree

DAY = 86_400
UUID = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9"
NO_MIN_FREE = MinFree()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("ATTACHFS_", "DATATRAILS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    return tmp_path


def call(*arguments: object, answer: str | None = None) -> Result:
    return CliRunner().invoke(cli_main.main, [str(argument) for argument in arguments], input=answer)


# -- text ----------------------------------------------------------------------------------------------


def test_json_is_ascii_and_tells_the_very_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "\x1b[2J\u202e\x7f\udcff"}
    output.say_json(value)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert printed.strip().isprintable()
    assert json.loads(printed) == value


def test_a_piped_table_is_neither_folded_nor_padded(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("name", "size"), [("x" * 300, 1), ("[red]y\x1b", 1000)], right=("size",))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["x" * 300, "1"]
    assert lines[2].split() == [r"[red]y\x1b", "1000"]
    assert all(line == line.rstrip() for line in lines)


def test_every_command_has_help_and_no_option_takes_a_secret() -> None:
    for words in (["verify"], ["prefetch"], ["manifest"], ["doctor"], ["cache"], ["pins"]):
        assert call(*words, "--help").exit_code == 0
    for name in ("stat", "list", "verify", "evict", "clear"):
        shown = call("cache", name, "--help").output
        assert "--cache-dir" in shown
        assert "--url" in shown


# -- several at once -----------------------------------------------------------------------------------


def test_results_come_in_order_and_errors_where_they_belong() -> None:
    assert list(in_order(range(3000), lambda n: n * n, 8)) == [n * n for n in range(3000)]
    assert list(in_order([], str, 8)) == []

    def fail(number: int) -> int:
        if number == 2:
            raise ValueError(number)
        return number

    results = in_order(range(5), fail, 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)


def test_nothing_new_is_begun_once_the_caller_stops() -> None:
    begun: list[int] = []
    results = in_order(range(500), begun.append, 1)
    next(results)
    results.close()
    known = len(begun)
    assert known <= 500
    assert list(in_order([1], str, 1)) == ["1"]


def test_progress_off_a_terminal_is_a_line_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Progress("prefetch", 4 << 20, 4, clock=lambda: now[0]) as progress:
        for second in (1, 9, 11, 12, 22):
            now[0] = second
            progress.advance(1 << 19, 0)
        progress.advance(files=1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0] == "prefetch: 0 of 4 files, 1.5 MiB of 4 MiB, 140 KiB/s, 18 s left"


# -- paths ---------------------------------------------------------------------------------------------


def test_walk_yields_files_in_order_and_what_cannot_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2", "b/1", "a", "c\n"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    found = list(walk([tmp_path, tmp_path / "nowhere", tmp_path / "link"]))
    assert [str(one.path.relative_to(tmp_path)) for one in found] == [
        *("a", "b/1", "b/2", "c\n"),
        "nowhere",
        *("link/1", "link/2"),
    ]
    assert [one.problem is not None for one in found] == [False] * 4 + [True] + [False] * 2


def test_walk_follows_links_to_files_that_it_has_not_met(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "by-name").mkdir()
    (tmp_path / "assets" / "0b1c").write_text("x")
    for name in ("Photo.jpg", "Photo again.jpg"):
        (tmp_path / "by-name" / name).symlink_to("../assets/0b1c")
    assert [one.path.name for one in walk([tmp_path])] == ["0b1c"]
    assert [one.path.name for one in walk([tmp_path / "by-name"])] == ["Photo again.jpg"]


def test_an_origin_leads_to_a_mount_of_that_ledger_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Mount(Path("/led"), "fuse.attachfs", "https://a.example", 99)
    monkeypatch.setattr(mountinfo, "mounts", lambda: [ours])
    monkeypatch.setattr(mountinfo, "status", lambda _: {"url": "https://a.example/base"})
    known = Mounts()
    place = f"assets/{UUID}/events/{UUID}/{UUID}"
    base = "https://a.example/base/archivist/v2/attachments"
    assert known.live(f"{base}/{place}") == Path("/led") / place
    assert known.live(f"{base}/publicassets/{UUID}/{UUID}") == Path(f"/led/publicassets/{UUID}/{UUID}")
    for other in (
        f"https://b.example/archivist/v2/attachments/{place}",
        f"{base}/../../etc/passwd",
        f"{base}/assets/{UUID}/../{UUID}",
        f"{base}/assets/{UUID}/{UUID}\n",
        f"{base}/assets/{UUID}",
        base,
        "",
    ):
        assert known.live(other) is None


def attribute(path: Path, **values: str) -> None:
    for name, value in values.items():
        os.setxattr(path, f"user.attachment.{name.replace('_', '.', 1)}", value.encode())


def test_a_copys_own_record_is_read_in_every_spelling(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert copied_record(path).digest is None
    attribute(path, hash_algorithm="SHA-256", hash_value=digest.upper())
    os.setxattr(path, "user.attachment.size", b"3")
    assert copied_record(path) == (Digest("sha256", digest), "", 3)
    os.setxattr(path, "user.attachment.hash.value", b"zz")
    assert "malformed" in copied_record(path).problem


# -- verify, prefetch, manifest ------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    path.write_bytes(b"evidence" * 1000)
    attribute(path, hash_alg="SHA256", hash_value=hashlib.sha256(path.read_bytes()).hexdigest())
    os.setxattr(path, "user.attachment.size", b"8000")
    os.setxattr(
        path,
        "user.xdg.origin.url",
        f"https://nowhere.invalid/archivist/v2/attachments/assets/{UUID}/{UUID}".encode(),
    )
    return path


def test_a_loose_copy_is_right_by_its_own_record_and_says_so(copy: Path) -> None:
    done = call("verify", copy)
    assert done.exit_code == 0
    assert f"{copy}: OK (recorded hash only: no mount of https://nowhere.invalid is running)" in done.stdout
    assert "1 OK, 0 differ" in done.stderr
    done = call("verify", "--live", copy)
    assert done.exit_code == 3
    assert f"{copy}: COULD NOT TELL: no mount of https://nowhere.invalid is running" in done.stdout


@pytest.mark.parametrize("where", [0, 4000, 7999])
def test_a_flipped_bit_anywhere_in_a_copy_is_found(copy: Path, where: int) -> None:
    with copy.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1]))
    done = call("verify", "--json", copy)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["verdict"] == "DIFFERS"
    assert told["found"] != told["recorded"]


def test_a_shorter_copy_and_one_without_a_record(copy: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare\x1b[2J"
    bare.write_text("x")
    done = call("verify", bare)
    assert done.exit_code == 3
    assert "COULD NOT TELL" in done.stdout
    assert "\x1b" not in done.output
    os.truncate(copy, 10)
    done = call("verify", copy, bare, tmp_path / "missing")
    assert done.exit_code == 1  # what differs matters more than what could not be told
    assert "it has 10 bytes, its own attribute records 8000" in done.stdout
    assert done.stdout.count("COULD NOT TELL") == 2


def test_verifying_nothing_is_not_success(tmp_path: Path) -> None:
    assert call("verify", tmp_path).exit_code == 3


@pytest.mark.parametrize("command", ["prefetch", "manifest"])
def test_what_needs_a_mount_says_so(command: str, tmp_path: Path) -> None:
    done = call(command, tmp_path)
    assert done.exit_code == 2
    assert "is not on an attachfs mount" in done.stderr
    done = call(command, tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "No such file" in done.stderr


def test_info_of_what_is_not_on_a_mount(tmp_path: Path) -> None:
    done = call("info", tmp_path, tmp_path / "nowhere\x1b")
    assert done.exit_code == 3
    assert "not an attachment, asset or event of an attachfs mount" in done.stderr
    assert r"nowhere\x1b: No such file or directory" in done.stderr


def test_manifest_lines_are_what_sha256sum_writes() -> None:
    assert manifest.sum_line("ab", b"plain name") == b"ab  plain name\n"
    assert manifest.sum_line("ab", b"two\nlines\\and\r\xff") == b"\\ab  two\\nlines\\\\and\\r\xff\n"


# -- cache ---------------------------------------------------------------------------------------------


class Cached:
    """A cache with three blobs, the first one opened longest ago."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: list[str] = []
        cache = DiskCache(root, 1 << 30, NO_MIN_FREE)
        cache.start("the mount /here")
        now = time.time_ns()
        for days, content in ((30, b"a" * 5000), (20, b"b" * 6000), (1, b"c" * 7000)):
            digest = Digest("sha256", hashlib.sha256(content).hexdigest())
            writer = cache.reserve(len(content))
            writer.write(content, 0)
            writer.admit(digest).close()
            self.digests.append(digest.hex)
            status = self.path(digest.hex).stat()
            os.utime(self.path(digest.hex), ns=(now - days * DAY * 10**9, status.st_mtime_ns))
        cache.close()

    def path(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest[:2] / digest

    def left(self) -> list[int]:
        return [number for number, digest in enumerate(self.digests) if self.path(digest).exists()]


@pytest.fixture
def cached(home: Path) -> Cached:
    return Cached(home / "cached")


def test_cache_stat_as_table_and_json(cached: Cached) -> None:
    done = call("cache", "stat", "--cache-dir", cached.root, "--cache-size", "2G")
    assert done.exit_code == 0
    assert "3, 17.6 KiB" in done.stdout
    assert "nobody" in done.stdout
    told = json.loads(call("cache", "stat", "--json", "--cache-dir", cached.root).stdout)
    assert (told["blobs"], told["bytes"], told["held_by"]) == (3, 18000, None)


def test_cache_list_is_in_the_order_of_leaving(cached: Cached) -> None:
    lines = call("cache", "list", "--json", "--cache-dir", cached.root).stdout.splitlines()
    assert [json.loads(line)["digest"] for line in lines] == [f"sha256:{d}" for d in cached.digests]
    table = call("cache", "list", "--cache-dir", cached.root).stdout
    assert all(digest in table for digest in cached.digests)


def test_cache_verify_finds_a_flipped_byte_and_puts_the_blob_aside(cached: Cached) -> None:
    assert call("cache", "verify", "--cache-dir", cached.root).exit_code == 0
    path = cached.path(cached.digests[1])
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(3000)
        file.write(b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would leave it
    done = call("cache", "verify", "--cache-dir", cached.root)
    assert done.exit_code == 1
    assert f"sha256:{cached.digests[1]}: DIFFERS: its bytes hash to" in done.stdout
    assert "3 blobs" in done.stderr
    assert "2 OK, 1 differ" in done.stderr
    assert cached.left() == [0, 2]
    assert len(list((cached.root / "quarantine").glob("*.blob"))) == 1
    assert call("cache", "verify", "--json", "--cache-dir", cached.root).exit_code == 0


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "25"], [1, 2]),
        (["--older-than", "0.5"], []),
        (["--older-than", "100"], [0, 1, 2]),
        (["--to", "13000"], [1, 2]),
        (["--to", "12999"], [2]),
        (["--to", "0"], []),
        (["--older-than", "25", "--to", "7K"], [2]),
    ],
)
def test_cache_evict_by_age_and_size(cached: Cached, options: list[str], left: list[int]) -> None:
    done = call("cache", "evict", "--cache-dir", cached.root, *options)
    assert done.exit_code == 0
    assert cached.left() == left
    assert "stays readable" in done.stderr


def test_cache_evict_by_digest(cached: Cached) -> None:
    where = ("--cache-dir", cached.root)
    assert (
        call("cache", "evict", *where, cached.digests[0], f"sha256:{cached.digests[2][:12]}").exit_code == 0
    )
    assert cached.left() == [1]
    done = call("cache", "evict", *where, cached.digests[0])
    assert done.exit_code == 1
    assert "no such blob is cached" in done.stderr
    for bad in (["x"], ["abc"], []):
        assert call("cache", "evict", *where, *bad).exit_code == 2
    assert call("cache", "evict", *where, "--to", "much").exit_code == 2
    assert cached.left() == [1]


def test_cache_clear_asks_first(cached: Cached) -> None:
    where = ("--cache-dir", cached.root)
    done = call("cache", "clear", *where, answer="n\n")
    assert done.exit_code == 1
    assert "Remove 3 blobs (17.6 KiB)" in done.stderr
    assert call("cache", "clear", *where, answer="").exit_code == 1
    assert cached.left() == [0, 1, 2]
    assert call("cache", "clear", *where, answer="y\n").exit_code == 0
    assert cached.left() == []
    assert call("cache", "clear", "--yes", *where).exit_code == 0


def test_there_is_no_cache_to_look_at(home: Path) -> None:
    for name in ("stat", "list", "verify", "clear"):
        done = call("cache", name, "--cache-dir", home / "nowhere")
        assert done.exit_code == 2
        assert str(home / "nowhere") in done.stderr
    assert not (home / "nowhere").exists()


def test_commands_work_beside_whoever_holds_the_cache(cached: Cached) -> None:
    cache = DiskCache(cached.root, 1 << 30, NO_MIN_FREE)
    cache.start("the mount /there")
    try:
        cache.index()
        blob = cache.open(Digest("sha256", cached.digests[0]), 5000)
        assert blob is not None
        assert lock_holder(cached.root) == (os.getpid(), "the mount /there")
        assert "the mount /there" in call("cache", "stat", "--cache-dir", cached.root).stdout
        assert call("cache", "clear", "--yes", "--cache-dir", cached.root).exit_code == 0
        assert blob.pread(5000, 0) == b"a" * 5000
        blob.close()
        assert cache.open(Digest("sha256", cached.digests[1]), 6000) is None
    finally:
        cache.close()
    assert lock_holder(cached.root) is None


# -- pins ----------------------------------------------------------------------------------------------


def digest_of(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


@pytest.fixture
def pinned(home: Path) -> Iterator[Pins]:
    pins = Pins(home / "state" / "attachfs" / "pins.sqlite")
    pins.check(f"a.example/{UUID}", digest_of(b"first"), 5)
    pins.check("b.example/other", digest_of(b"other"), 5)
    pins.check(f"a.example/{UUID}", digest_of(b"second"), 6)
    yield pins
    pins.close()


@pytest.mark.usefixtures("pinned")
def test_pins_list_and_conflicts() -> None:
    lines = [json.loads(line) for line in call("pins", "list", "--json").stdout.splitlines()]
    assert [line["key"] for line in lines] == [f"a.example/{UUID}", "b.example/other"]
    assert "b.example" not in call("pins", "list", "a.example").stdout
    assert "a.example" not in call("pins", "list", "b.*").stdout
    done = call("pins", "conflicts")
    assert done.exit_code == 1
    assert f"attachfs pins release a.example/{UUID}" in done.stdout
    assert str(digest_of(b"second")) in done.stdout
    assert json.loads(call("pins", "conflicts", "--json").stdout)["stands"] is True


def test_no_pins_yet_and_none_are_made_by_looking(home: Path) -> None:
    assert call("pins", "list").exit_code == 0
    assert call("pins", "conflicts").exit_code == 0
    assert call("pins", "release", "x").exit_code == 2
    assert not (home / "state").exists()


@pytest.mark.parametrize("key", [f"a.example/{UUID}", UUID, f"/mnt/assets/{UUID}/{UUID}"])
def test_a_release_is_shown_asked_and_effective_for_a_running_mount(pinned: Pins, key: str) -> None:
    full = f"a.example/{UUID}"
    assert pinned.conflict(full, digest_of(b"second"), 6) is not None
    done = call("pins", "release", key, answer="n\n")
    assert done.exit_code == 1
    assert full in done.stderr
    assert str(digest_of(b"first")) in done.stderr
    assert str(digest_of(b"second")) in done.stderr
    assert pinned.conflict(full, digest_of(b"second"), 6) is not None
    assert call("pins", "release", key, "--yes").exit_code == 0
    # This object has confirmed the old hash, as a mount has: it believes the new one all the same.
    assert pinned.conflict(full, digest_of(b"second"), 6) is None
    assert pinned.check(full, digest_of(b"second"), 6).status.value == "new"
    assert pinned.conflict(full, digest_of(b"first"), 5) is not None
    assert call("pins", "release", "b.example/nothing", "--yes").exit_code == 2


@pytest.mark.usefixtures("pinned")
def test_a_released_conflict_stands_no_more_even_if_the_old_hash_comes_back(pinned: Pins) -> None:
    assert call("pins", "release", UUID, "--yes").exit_code == 0
    assert call("pins", "conflicts").exit_code == 0
    fresh = Pins(pinned.path)
    fresh.check(f"a.example/{UUID}", digest_of(b"first"), 5)
    fresh.close()
    assert call("pins", "conflicts").exit_code == 0


# -- doctor --------------------------------------------------------------------------------------------


def chained(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = RuntimeError("the library's own")
    error.__cause__.__cause__ = cause
    return error


def certificate(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "refused")
    error.verify_code = code
    error.verify_message = "refused"
    return error


URL = "https://ledger.example"


@pytest.mark.parametrize(
    ("error", "state", "remedy"),
    [
        (chained(Unreachable("x"), socket.gaierror(-2, "unknown")), State.WRONG, "DNS"),
        (chained(Unreachable("x"), ConnectionRefusedError()), State.WRONG, "nothing listens"),
        (chained(Unreachable("x"), certificate(62)), State.WRONG, "another host's"),
        (chained(Unreachable("x"), certificate(64)), State.WRONG, "another host's"),
        (chained(Unreachable("x"), certificate(10)), State.WRONG, "has expired"),
        (chained(Unreachable("x"), certificate(9)), State.WRONG, "clock"),
        (chained(Unreachable("x"), certificate(18)), State.WRONG, "--ca-file"),
        (chained(Unreachable("x"), certificate(20)), State.WRONG, "--ca-file"),
        (chained(Unreachable("x"), certificate(1)), State.WRONG, "certificate is refused"),
        (chained(Unreachable("x"), ssl.SSLError(1, "WRONG_VERSION_NUMBER")), State.WRONG, "http://"),
        (Unreachable("x"), State.WRONG, "network"),
        (TimedOut("x"), State.WRONG, "firewalls"),
        (NotFound("x"), State.WRONG, "something other than a ledger"),
        (BadAnswer("x: the answer is not readable JSON"), State.WRONG, "something other than a ledger"),
        (BadAnswer("x: the service answered 503"), State.UNKNOWN, "try again later"),
        (RateLimited("x"), State.UNKNOWN, "wait"),
    ],
)
def test_each_way_not_to_reach_the_ledger_has_its_remedy(error: Exception, state: State, remedy: str) -> None:
    there, accepted = doctor_ledger.explain(error, URL)
    assert there.state is state
    assert remedy in there.remedy
    assert accepted.state is State.UNKNOWN


@pytest.mark.parametrize(
    ("error", "anonymous", "state", "remedy"),
    [
        (None, False, State.OK, ""),
        (AccessDenied("x (401)"), False, State.WRONG, "attachfs login"),
        (AccessDenied("x (403)"), False, State.WRONG, "access policy"),
        (AccessDenied("x (401)"), True, State.OK, ""),
    ],
)
def test_a_refusal_shows_that_the_ledger_is_there(
    error: Exception | None, *, anonymous: bool, state: State, remedy: str
) -> None:
    there, accepted = doctor_ledger.explain(error, URL, anonymous=anonymous)
    assert there.state is State.OK
    assert accepted.state is state
    assert remedy in accepted.remedy


def test_a_plain_http_address_of_something_else_may_want_https() -> None:
    assert "https://" in doctor_ledger.explain(BadAnswer("x: broke"), "http://h")[0].remedy


def test_an_old_python_a_missing_library_and_a_missing_helper(tmp_path: Path) -> None:
    assert doctor.python((3, 10, 1)).state is State.WRONG
    assert doctor.python().state is State.OK
    assert doctor.library("attachfs.nothing").state is State.WRONG
    assert doctor.helper(None, root=False).remedy == "apt install fuse3"
    assert doctor.helper(None, root=True).state is State.NOTE
    tool = tmp_path / "fusermount3"
    tool.write_text("")
    assert "u+s" in doctor.helper(str(tool), root=False).remedy
    if os.getuid() == 0:
        tool.chmod(0o4755)
        assert doctor.helper(str(tool), root=False).state is State.OK


def test_the_device_is_missing_no_device_or_closed(tmp_path: Path) -> None:
    assert "modprobe" in doctor.device(tmp_path / "fuse").remedy
    plain = tmp_path / "plain"
    plain.touch()
    assert "mknod" in doctor.device(plain).remedy
    assert doctor.device(Path(os.devnull)).state is State.OK
    if os.getuid() == 0:
        node = tmp_path / "node"
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        assert doctor.device(node).state in (State.NOTE, State.WRONG)  # wrong where nodev forbids it


def test_other_users_need_a_line_in_fuse_conf(tmp_path: Path) -> None:
    conf = tmp_path / "fuse.conf"
    assert doctor.other_users(conf, wanted=True, root=False).state is State.WRONG
    assert doctor.other_users(conf, wanted=True, root=True).state is State.OK
    conf.write_text("#user_allow_other\n")
    assert doctor.other_users(conf, wanted=True, root=False).state is State.WRONG
    conf.write_text("  user_allow_other  \n")
    assert doctor.other_users(conf, wanted=True, root=False).state is State.OK


def test_dead_mounts_are_told_from_other_peoples(monkeypatch: pytest.MonkeyPatch) -> None:
    def statvfs(path: Path) -> None:
        code = {"dead": errno.ENOTCONN, "theirs": errno.EACCES}.get(path.name)
        if code:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "statvfs", statvfs)
    found = [Mount(Path(f"/{name}"), "fuse.attachfs", URL, 1) for name in ("dead", "theirs", "alive")]
    told = list(doctor.running([*found, Mount(Path("/"), "ext4", "x", 0)]))
    assert [one.state for one in told] == [State.WRONG, State.OK, State.OK]
    assert told[0].remedy == "attachfs umount /dead"
    assert next(iter(doctor.running([]))).state is State.OK


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what depends on this machine."""

    async def ledger(_: object) -> list[Finding]:
        return [Finding("ledger", State.OK, "\x1b[2J")]

    monkeypatch.setattr(doctor_ledger, "check", ledger)
    monkeypatch.setattr(doctor, "device", lambda _: Finding("FUSE device", State.OK, ""))
    monkeypatch.setattr(doctor, "helper", lambda _: Finding("fusermount3", State.OK, ""))
    monkeypatch.setattr(mountinfo, "mounts", list)


def checks(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = call("doctor", "--json", *arguments)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.exit_code, {line["check"]: line for line in lines}


@pytest.mark.usefixtures("home", "quiet")
def test_doctor_exit_codes_and_safe_words(monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("doctor")
    assert done.exit_code == 0
    assert "\x1b" not in done.output
    monkeypatch.setattr(doctor, "device", lambda _: Finding("FUSE device", State.UNKNOWN, "", "do this"))
    done = call("doctor")
    assert done.exit_code == 3
    assert "→ do this" in done.stdout
    monkeypatch.setattr(doctor, "helper", lambda _: Finding("fusermount3", State.WRONG, ""))
    assert call("doctor").exit_code == 1


@pytest.mark.usefixtures("home")
def test_offline_the_ledger_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountinfo, "mounts", list)
    told = checks("--offline", "--url", "http://ledger.invalid")[1]
    assert told["ledger"]["state"] == "note"
    assert "credentials" not in told


@pytest.mark.usefixtures("quiet")
def test_doctor_looks_at_cache_and_pins(cached: Cached, pinned: Pins, tmp_path: Path) -> None:
    code, told = checks("--cache-dir", cached.root, "--cache-min-free", "0")
    assert code == 1
    assert told["cache"]["state"] == "ok"
    assert told["first-seen"]["state"] == "WRONG"
    assert "2 hashes are pinned, and 1 record changed since" in told["first-seen"]["detail"]
    pinned.release(f"a.example/{UUID}")
    code, told = checks("--cache-dir", cached.root, "--cache-min-free", "99.9999%")
    assert told["cache"]["state"] == "WRONG"
    assert "--cache-min-free" in told["cache"]["remedy"]
    assert told["first-seen"]["state"] == "ok"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    assert checks("--cache-dir", tmp_path / "mine")[1]["cache"]["remedy"] == "choose another with --cache-dir"
    assert checks("--cache-dir", tmp_path / "mine" / "letter.txt")[1]["cache"]["state"] == "WRONG"
    assert checks("--cache-dir", tmp_path / "new")[1]["cache"]["state"] == "ok"
    assert not (tmp_path / "new").exists()


def test_a_pin_is_named_by_a_link_in_by_name_too(pinned: Pins, tmp_path: Path) -> None:
    link = tmp_path / "photo.jpg"
    link.symlink_to(f"../../assets/{UUID}/{UUID}")
    assert call("pins", "release", link, "--yes").exit_code == 0
    assert pinned.get(f"a.example/{UUID}") is None


def test_a_file_of_somebody_else_is_told_with_its_owner(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = home / "state" / "attachfs"
    theirs.mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(theirs / "pins.sqlite"))

    monkeypatch.setattr("attachfs.cli.pins.Pins", refuse)
    (theirs / "pins.sqlite").touch()
    assert "its mode does not let you" in call("pins", "list").stderr
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4321)
    done = call("pins", "list")
    assert done.exit_code == 1
    assert f"belongs to user {os.getuid()}; choose one of your own" in done.stderr


def test_a_variable_that_names_no_authorities_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    there, _ = doctor_ledger.explain(chained(Unreachable("x"), certificate(20)), URL)
    assert f"SSL_CERT_FILE in the environment names {tmp_path}/gone.pem, which is not there" in there.remedy
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    assert (
        "SSL_CERT_FILE"
        not in doctor_ledger.explain(chained(Unreachable("x"), certificate(20)), URL)[0].remedy
    )


@pytest.mark.parametrize("seconds", [1e30, -1e30, float("inf"), float("nan"), 253402300800.0, -62135596801.0])
def test_times_beyond_the_calendar_are_told_all_the_same(seconds: float) -> None:
    assert "since 1970" in output.moment(seconds)


def test_numbers_agree_with_their_nouns() -> None:
    assert [output.count(n, "file") for n in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
    assert [output.count(n, "directory") for n in (0, 1, 2)] == [
        "0 directories",
        "1 directory",
        "2 directories",
    ]


def test_a_cache_that_was_never_made_is_told_as_that(home: Path) -> None:
    result = call("cache", "stat")
    assert result.exit_code == 2
    assert f"there is no cache in {home}" in result.stderr
    assert "--profile" in result.stderr
    assert not list(home.glob(".cache/attachfs/*"))


def test_pins_list_says_when_there_are_none(home: Path) -> None:
    assert list(home.iterdir()) == []
    result = call("pins", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no hashes have been pinned yet" in result.stderr


def test_the_tour_calls_a_program_that_runs_wherever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper may give a bare name; a directory of that name, as in a checkout, is not the program."""
    (tmp_path / "attachfs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["attachfs", "demo"])
    assert tour.program() == f"{sys.executable} -m attachfs"
    monkeypatch.setattr(sys, "argv", ["/opt/bin/attachfs", "demo"])
    assert tour.program() == "/opt/bin/attachfs"


def test_status_shows_an_error_that_recurs_once_and_counts_it(capsys: pytest.CaptureFixture[str]) -> None:
    one = {
        "time": 1.0,
        "operation": "open",
        "path": "a/b",
        "reason": "a/b: the bytes do not match",
        "errno": 74,
    }
    stats = {"last_errors": [one, {**one, "time": 9.0}, {**one, "path": "c", "reason": "gone"}]}
    Console(width=200).print(status._errors(stats["last_errors"]))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(None, 1)[1].strip() for line in lines] == [
        "open: a/b: the bytes do not match (2 times)",
        "open c: gone",
    ]
    assert lines[0].startswith("1970-01-01T00:00:09Z")
