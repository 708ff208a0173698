"""Every way of verifying, every way of being wrong, cold and cached, on real mounts: bytes and errno."""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, identity, serve
from tests.services.wrong_bodies import WRONG_BODIES, flipped

KiB, MiB = 1024, 2**20
WITHHELD = 128 * KiB  # bytes at the end that a stream keeps back until the whole is right
STRICT_LIMIT = MiB  # of the mount with --verify=auto
MODES = {"strict": ["--verify=strict"], "stream": ["--verify=stream"], "auto": ["--verify=auto"]}
SIZES = {
    "strict": [1, 4096, 128 * KiB + 1, MiB + 1],
    "stream": [1, 4095, 4096, 4097, 128 * KiB - 1, 128 * KiB, 128 * KiB + 1, MiB + 1, 3 * MiB],
    "auto": [1, 4096, 128 * KiB + 1, MiB, MiB + 1],
}


# -- ways of being wrong -----------------------------------------------------------------------------------


class Body(NamedTuple):
    """What goes over the wire: Content-Length (None: the body ends with the connection) and bytes."""

    announced: int | None
    data: bytes


def whole(data: bytes) -> Body:
    return Body(len(data), data)


WIRE: dict[str, Callable[[bytes], Body]] = {
    "good": whole,
    **{name: lambda data, wrong=wrong: whole(wrong.of(data)) for name, wrong in WRONG_BODIES.items()},  # type: ignore[misc]
    "a byte short and cut": lambda data: Body(len(data), data[:-1]),
    "a byte short, no length": lambda data: Body(None, data[:-1]),
    "a byte long, no length": lambda data: Body(None, data + b"x"),
    "empty and cut": lambda data: Body(len(data), b""),
}
RECORDS = ("another hash in /info", "another hash in the ledger", "not as first seen")
EBADMSG_FAULTS = {n for n, wrong in WRONG_BODIES.items() if wrong.errno == errno.EBADMSG} | set(RECORDS)


class Case(NamedTuple):
    """One field of the matrix."""

    mode: str
    fault: str
    warmth: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.mode}, {self.fault}, {self.warmth}, {self.size}"

    @property
    def at_open(self) -> bool:
        """Whether nothing may be handed out before the whole is right."""
        limits = {"strict": self.size, "auto": STRICT_LIMIT, "stream": WITHHELD}
        return self.size <= limits[self.mode]

    @property
    def is_read_first(self) -> bool:
        """Whether the file was read while everything was still right."""
        return self.warmth != "cold" or self.fault == "not as first seen"

    @property
    def errno(self) -> int:
        """What a program should see; 0: the right bytes."""
        fault = self.fault.rpartition(", then ")[2]
        if fault == "good" or (self.warmth == "cached" and fault in WIRE):
            return 0
        return errno.EBADMSG if fault in EBADMSG_FAULTS else errno.EIO


CASES = [
    Case(mode, fault, warmth, size)
    for mode in MODES
    for fault, warmth, size in itertools.product([*WIRE, *RECORDS], ["cold", "cached"], SIZES[mode])
]
MATRIX = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# -- ways in which a cached file comes to harm -------------------------------------------------------------


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    with path.open("r+b") as file:
        data = change(file.read())
        file.seek(0)
        file.write(data)
        file.truncate()


def replaced(path: Path, by: Callable[[], object]) -> object:
    path.unlink()
    return by()


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "flipped": lambda path, _: rewrite(path, lambda data: flipped(data, len(data) // 2)),
    "cut": lambda path, _: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path, _: os.truncate(path, 0),
    "extended": lambda path, _: rewrite(path, lambda data: data + b"x"),
    "replaced": lambda path, _: replaced(path, lambda: path.write_bytes(bytes(129 * KiB))),
    "a folder": lambda path, _: replaced(path, path.mkdir),
    "a FIFO": lambda path, _: replaced(path, lambda: os.mkfifo(path)),
    "a symlink": lambda path, outside: (
        outside.write_bytes(flipped(path.read_bytes(), 9))
        and replaced(path, lambda: path.symlink_to(outside))
    ),
    "a dangling symlink": lambda path, outside: replaced(path, lambda: path.symlink_to(outside)),
    "a second name": os.link,
    "gone": lambda path, _: path.unlink(),
}
WIRE_FOR_TOOLS = ("good", "first bit flipped", "last bit flipped", "another blob's bytes", "a byte short")
SIZES_FOR_TOOLS = (128 * KiB + 1, MiB + 1)
WIRE_AFTER_DAMAGE = ("good", "last bit flipped", "a byte short")


def damaged(mode: str, damage: str, *, server: str) -> Case:
    return Case(mode, f"{damage}, then {server}", "damaged", 129 * KiB)


# -- what a program gets -----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a program that reads from the beginning to the end got, and where it met which error."""

    data: bytes
    where: str
    errno: int


def read_through(path: Path, flags: int = 0) -> Outcome:
    """Read a file in odd pieces (whole blocks if direct) until it ends or fails."""
    try:
        fd = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        return Outcome(b"", "open", error.errno or 0)
    data, piece = bytearray(), 256 * KiB if flags & os.O_DIRECT else 100_001
    with contextlib.closing(mmap.mmap(-1, piece)) as buffer:  # direct reads want whole pages
        try:
            while count := os.preadv(fd, [buffer], len(data)):
                data += buffer[:count]
            return Outcome(bytes(data), "", 0)
        except OSError as error:
            return Outcome(bytes(data), "read", error.errno or 0)
        finally:
            os.close(fd)


@dataclass
class Bench:
    """A mount of a ledger full of faults, and what reading each of its files brought."""

    mounted: Mounted
    ledger: ScriptedLedger
    paths: dict[str, Path]
    contents: dict[str, bytes]
    wire: dict[str, Body]
    asked: Counter[str]
    outcomes: dict[Case, "concurrent.futures.Future[Outcome]"]

    def sent_by(self, case: Case) -> bytes:
        return self.wire[identity(case.name)].data


@functools.cache
def content_of(case: Case, *, other: bool = False) -> bytes:
    """Return the bytes of a case's attachment, or others of the same length; no two cases share any."""
    if case.size == 1:  # the lowest bit tells right from wrong
        alike = [one for one in CASES if one.mode == case.mode and one.size == 1]
        return bytes([2 * alike.index(case) + other])
    return random.Random(f"{case.name}, {other}").randbytes(case.size)


def answer_with(bodies: dict[str, Body], asked: Counter[str], ledger: ScriptedLedger) -> None:
    """Have the ledger send these bodies, and count who was asked for."""

    def bent(request: Handler) -> bool:
        one = request.path.rpartition("/")[2]
        with ledger.changed:
            asked[one] += 1
        body = bodies.get(one)
        if body is None:
            return False
        request.send_response(200)
        if body.announced is None:
            request.send_header("Connection", "close")
        else:
            request.send_header("Content-Length", str(body.announced))
        request.close_connection = body.announced != len(body.data)
        request.end_headers()
        request.wfile.write(body.data)
        return True

    ledger.bend["blob"] = bent


def break_record(ledger: ScriptedLedger, case: Case) -> bytes:
    """Give a case's attachment its faulty record; return the bytes that the service then has."""
    one, content = identity(case.name), content_of(case)
    other = content_of(case, other=True)
    other_hash = hashlib.sha256(other).hexdigest()
    if case.fault != "another hash in the ledger":
        ledger.infos[one]["hash"]["value"] = other_hash
    if case.fault != "another hash in /info":
        ledger.anchors[one] = other_hash
    return other if case.fault == "not as first seen" else content


@pytest.fixture(scope="module")
def bench_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Bench]]:
    """Return a function that gives the bench of a mode, one for all tests."""
    made: dict[str, Bench | BaseException] = {}
    with contextlib.ExitStack() as stack:

        def bench(mode: str) -> Bench:
            if mode not in made:
                try:
                    made[mode] = stack.enter_context(start(mode, tmp_path_factory.mktemp(mode)))
                except BaseException as error:
                    made[mode] = error  # the next test would wait for it as long
                    raise
            found = made[mode]
            if isinstance(found, BaseException):
                raise found
            return found

        yield bench


@contextlib.contextmanager
def start(mode: str, base: Path) -> Iterator[Bench]:
    """Mount a ledger that is right, read what is to be cached; mount again once everything is wrong."""
    ledger = ScriptedLedger()
    cases = [case for case in CASES if case.mode == mode]
    contents = {case.name: content_of(case) for case in cases}
    paths = {name: base / "mnt" / ledger.add(name, content) for name, content in contents.items()}
    for damage in DAMAGE:
        for case in (damaged(mode, damage, server=server) for server in WIRE_AFTER_DAMAGE):
            cases.append(case)
            contents[case.name] = content_of(case)
            paths[case.name] = base / "mnt" / ledger.add(case.name, contents[case.name])
    options = [*MODES[mode], f"--strict-limit={STRICT_LIMIT}", "--cache-size=1G"]
    asked: Counter[str] = Counter()
    with serve(ledger, base / "token") as server, concurrent.futures.ThreadPoolExecutor(48) as pool:
        with run_mount(base, *options, server=server) as mounted:
            seen = {paths[c.name]: contents[c.name] for c in cases if c.is_read_first}
            for case in cases:
                if case.fault in RECORDS and case.warmth == "cached":
                    # What the wrong record names is in the cache: it is no shortcut.
                    other = content_of(case, other=True)
                    seen[base / "mnt" / ledger.add(f"other {case.name}", other)] = other
            for path, found in zip(seen, pool.map(read_through, seen), strict=True):
                assert found == Outcome(seen[path], "", 0), "\n".join([str(path), *mounted.log])
            elsewhere = base / "elsewhere"
            elsewhere.mkdir()
        wire = {}
        for case in cases:
            fault = case.fault.rpartition(", then ")[2]
            if fault in WIRE:
                wire[identity(case.name)] = WIRE[fault](contents[case.name])
            else:
                wire[identity(case.name)] = whole(break_record(ledger, case))
            if case.warmth == "damaged":
                digest = hashlib.sha256(contents[case.name]).hexdigest()
                DAMAGE[case.fault.partition(", then ")[0]](
                    mounted.cache / "blobs" / "sha256" / digest[:2] / digest, elsewhere / digest
                )
        answer_with(wire, asked, ledger)
        for case in TOOL_CASES if mode == "stream" else ():
            contents[case.name] = content_of(case)
            paths[case.name] = base / "mnt" / ledger.add(case.name, contents[case.name])
            wire[identity(case.name)] = WIRE[case.fault](contents[case.name])
        with run_mount(base, *options, server=server) as mounted:
            outcomes = {case: pool.submit(read_through, paths[case.name]) for case in cases}
            yield Bench(mounted, ledger, paths, contents, wire, asked, outcomes)
            concurrent.futures.wait(outcomes.values())


# -- the matrix --------------------------------------------------------------------------------------------


def judge(bench: Bench, case: Case) -> None:
    """Hold what a program got against what it may get."""
    found = bench.outcomes[case].result(60)
    assert found.errno == case.errno, errno.errorcode.get(found.errno, found.errno)
    if not case.errno:
        assert found.data == bench.contents[case.name]
    elif case.at_open or case.fault in RECORDS:
        assert found.where == "open"
    else:
        assert found.where in ("open", "read")
        assert len(found.data) <= (case.size - 1) // WITHHELD * WITHHELD
        assert bench.sent_by(case).startswith(found.data)


@MATRIX
def test_each_blob_and_mode_gives_the_right_bytes_or_the_right_error(
    bench_of: Callable[[str], Bench], case: Case
) -> None:
    """The right bytes or the right error, and in strict verification no byte before the verdict.

    Promise 2: "With strict verification, a file opens only after all of its bytes have been fetched and
    verified: a program that gets an error has received none of them."

    Promise 3: "With stream verification, bytes are served as they arrive, or ahead of that where the
    service sends parts, except for one part of at most 128 KiB: it is withheld until the whole file and
    everything served ahead have been verified, so that no program reads a wrong file to its end without an
    error."

    Promise 4: "With auto verification, files up to the strict limit are treated as with strict
    verification, larger ones as with stream verification."

    Promise 6: "Three hashes are compared: that of the bytes, the one in /info, and the one in the asset's
    or event's own attributes where there is one; if any two of them differ, the file does not open or, if
    it is streamed, fails before its end, with EBADMSG."

    Promise 7: "The hash and size with which a file was first verified are remembered outside the cache; if
    the ledger later records others, the file does not open."

    Promise 8: "A body that is shorter or longer than recorded fails with EIO, whether its announced length
    shows that or the connection ends early."
    """
    bench = bench_of(case.mode)
    judge(bench, case)
    if case.fault in RECORDS or (case.warmth == "cached" and not case.errno):
        assert bench.asked[identity(case.name)] == 0
    else:
        assert bench.asked[identity(case.name)] >= 1


@pytest.mark.parametrize(
    "case",
    [
        damaged(mode, damage, server=server)
        for mode, damage, server in itertools.product(MODES, DAMAGE, WIRE_AFTER_DAMAGE)
    ],
    ids=lambda case: case.name,
)
def test_a_cached_file_changed_on_the_disk_is_fetched_again_or_refused(
    bench_of: Callable[[str], Bench], case: Case
) -> None:
    """Whatever became of the cached file, its bytes are not served, and nothing outside is touched.

    Promise 10: "A cached file that was written to, truncated, extended or replaced on the disk is hashed
    again when it is next opened; if it is wrong, it is quarantined and fetched again."
    """
    bench = bench_of(case.mode)
    judge(bench, case)
    assert bench.asked[identity(case.name)] >= (case.errno == 0)


@pytest.mark.parametrize("mode", MODES)
def test_after_all_of_it_the_cache_holds_only_what_is_right(
    bench_of: Callable[[str], Bench], mode: str
) -> None:
    """What was wrong is in the quarantine and nowhere else.

    Promise 1: "A blob enters the cache only after its length and hash have matched what /info records; its
    file there is named by that hash."

    Promise 9: "Bytes that did not match are kept under quarantine/ in the cache directory, with a note of
    what was expected, and are never served."
    """
    bench = bench_of(mode)
    concurrent.futures.wait(bench.outcomes.values())
    right = {hashlib.sha256(content).hexdigest() for content in bench.contents.values()}
    for path in bench.mounted.cached():
        if path.is_symlink() or path.stat().st_nlink > 1:
            continue  # planted by the test, and not used
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    held = {path.name for path in (bench.mounted.cache / "quarantine").iterdir()}
    for case in bench.outcomes:
        if case.warmth == "cold" and case.fault in WIRE and case.errno == errno.EBADMSG:
            digest = hashlib.sha256(bench.sent_by(case)).hexdigest()
            assert digest not in right
            assert {name.rpartition(".")[2] for name in held if digest in name} == {"blob", "json"}
    said = "\n".join(bench.mounted.log)
    for case in bench.outcomes:
        assert (identity(case.name) in said) == bool(case.errno), case.name


# -- the tools that people have ----------------------------------------------------------------------------


def shell(command: str) -> Callable[[Path, Path], tuple[bool, bytes]]:
    """Return a reader that runs a command; it says whether the command was content, and its output."""

    def run(path: Path, scratch: Path) -> tuple[bool, bytes]:
        text = command.format(path=path, folder=path.parent, name=path.name, copy=scratch / "copy")
        done = subprocess.run(["bash", "-c", text], capture_output=True, check=False, timeout=60)
        return done.returncode == 0, done.stdout

    return run


def map_all(path: Path, _: Path) -> tuple[bool, bytes]:
    """Touch every page of a map in a process that may die of it."""
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n"
        "    sys.stdout.buffer.write(bytes(m))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program, path], stdout=-1, check=False)
    assert done.returncode in (0, -signal.SIGBUS)
    return done.returncode == 0, done.stdout


def in_process(
    read: Callable[[int, int], bytes], flags: int = 0
) -> Callable[[Path, Path], tuple[bool, bytes]]:
    """Return a reader from a function of a descriptor and the size."""

    def run(path: Path, _: Path) -> tuple[bool, bytes]:
        fd = os.open(path, os.O_RDONLY | flags)
        size = os.fstat(fd).st_size
        try:
            return True, read(fd, size)
        except OSError:
            with pytest.raises(OSError) as again:  # it stays so
                os.pread(fd, 1, size - 1)
            assert again.value.errno in (errno.EBADMSG, errno.EIO)
            return False, b""
        finally:
            os.close(fd)

    return run


def last_byte_first(fd: int, size: int) -> bytes:
    last = os.pread(fd, 1, size - 1)
    return os.pread(fd, size - 1, 0) + last


def backwards(fd: int, size: int) -> bytes:
    pieces = [os.pread(fd, 5000, offset) for offset in range(0, size, 5000)[::-1]]
    return b"".join(pieces[::-1])


def all_at_once(fd: int, size: int) -> bytes:
    data = os.pread(fd, size + 1, 0)
    if len(data) < size:  # what came before the error; it comes with the next read
        os.pread(fd, 1, len(data))
    return data


def by_sendfile(fd: int, size: int) -> bytes:
    target = os.memfd_create("copy")
    try:
        while os.lseek(target, 0, os.SEEK_CUR) < size and os.sendfile(target, fd, None, size):
            pass
        return os.pread(target, size, 0)
    finally:
        os.close(target)


def direct(fd: int, size: int) -> bytes:
    data = bytearray()
    with contextlib.closing(mmap.mmap(-1, 512 * KiB)) as buffer:
        while count := os.preadv(fd, [buffer], len(data)):
            data += buffer[:count]
    assert len(data) <= size
    return bytes(data)


TOOLS = {
    "cat": shell("cat {path}"),
    "cp": shell("cp {path} {copy} && cat {copy}"),
    "dd": shell("dd if={path} bs=7k status=none"),
    "dd iflag=direct": shell("dd if={path} bs=128k iflag=direct status=none"),
    "head -c": shell("head -c $(stat -c %s {path}) {path}"),
    "rsync": shell("rsync {path} {copy} && cat {copy}"),
    "sha256sum": shell("sha256sum < {path}"),
    "tar": shell("set -o pipefail; tar -C {folder} -cf - {name} | tar -xOf -"),
    "mmap": map_all,
    "O_DIRECT": in_process(direct, os.O_DIRECT),
    "last byte first": in_process(last_byte_first),
    "backwards": in_process(backwards),
    "one read": in_process(all_at_once),
    "sendfile": in_process(by_sendfile),
}


# Each its own file: what has failed is not even asked for again for a while.
TOOL_CASES = [
    Case("stream", fault, tool, size)
    for tool, size, fault in itertools.product(TOOLS, SIZES_FOR_TOOLS, WIRE_FOR_TOOLS)
]


@pytest.mark.parametrize("case", TOOL_CASES, ids=lambda case: case.name)
def test_no_tool_reads_a_wrong_stream_to_its_end(
    bench_of: Callable[[str], Bench], tmp_path: Path, case: Case
) -> None:
    """The tool says that it failed, and what it put out is not the whole file.

    Promise 5: "A read returns exactly the bytes requested, cut only at the end of the file, or fails: an
    incomplete answer never looks like the end."
    """
    bench = bench_of("stream")
    content, out = TOOLS[case.warmth](bench.paths[case.name], tmp_path)
    assert bench.asked[identity(case.name)] >= 1
    assert content == (case.errno == 0)
    whole_file = bench.contents[case.name]
    if case.warmth == "sha256sum":
        assert out == (f"{hashlib.sha256(whole_file).hexdigest()}  -\n".encode() if content else b"")
    elif content:
        assert out == whole_file
    elif case.warmth == "tar":  # pads a member that fails with zeros, and says so
        assert out != bench.sent_by(case)
    else:
        assert len(out) < case.size
