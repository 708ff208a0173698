"""Many at once: slow readers hold nobody up, and a walk asks side by side."""

import concurrent.futures
import os
import subprocess
import threading
from pathlib import Path

from tests.mount.conftest import run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, serve


def test_hundreds_of_slow_opens_do_not_hold_up_a_stat_or_a_directory(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    slow = {f"slow {n}": os.urandom(1000) for n in range(300)}
    paths = {ledger.add(name, content): content for name, content in slow.items()}
    gate = threading.Event()

    def stall(_: Handler) -> bool:
        gate.wait(60)
        return False

    ledger.bend["blob"] = stall
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, server=server) as mounted,
        concurrent.futures.ThreadPoolExecutor(300) as pool,
    ):
        reads = {path: pool.submit((mounted.point / path).read_bytes) for path in paths}
        try:
            ledger.wait_for(lambda: ledger.counts["blob"] >= 16 and ledger.counts["info"] == 300)
            fresh = mounted.point / ledger.add("fresh", b"x" * 77)
            assert fresh.stat().st_size == 77
            assert mounted.sh("ls assets").stdout.split() == [ledger.asset]
            assert not any(read.done() for read in reads.values())
        finally:
            gate.set()
        for path, read in reads.items():
            assert read.result() == paths[path]
        assert ledger.counts["blob"] == 300


def test_ls_l_asks_for_a_directorys_infos_side_by_side_and_each_once(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    for n in range(20):
        ledger.add(f"file {n}", b"x" * n)
    together = threading.Barrier(16)

    def meet(_: Handler) -> bool:
        if not together.broken and ledger.counts["info"] <= 16:
            together.wait(20)  # breaks, and fails the test, unless sixteen are under way at once
        return False

    ledger.bend["info"] = meet
    with serve(ledger, tmp_path / "token") as server, run_mount(tmp_path, server=server) as mounted:
        shown = mounted.sh(f"ls -l assets/{ledger.asset}").stdout
        assert shown.count("-r--r--r--") == 20
        assert not together.broken
        assert ledger.counts["info"] == 20


def test_a_look_at_one_file_asks_for_one(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    paths = [ledger.add(f"file {n}", b"x" * n) for n in range(20)]
    with serve(ledger, tmp_path / "token") as server, run_mount(tmp_path, server=server) as mounted:
        mounted.sh(f"ls -f assets/{ledger.asset}; stat {paths[7]}; cat {paths[7]}; getfattr -d {paths[7]}")
        assert ledger.counts["info"] == 1
        assert ledger.counts["blob"] == 1


def test_a_streamed_file_is_handed_out_as_it_comes_but_never_to_its_end_before_it_is_verified(
    tmp_path: Path,
) -> None:
    ledger = ScriptedLedger()
    content = os.urandom(8 * 2**20)
    path = ledger.add("big", content)
    gate = threading.Event()

    def half(request: Handler) -> bool:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: len(content) // 2])
        gate.wait(60)
        request.wfile.write(content[len(content) // 2 :])
        return True

    ledger.bend["blob"] = half
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, "--verify=stream", server=server) as mounted,
        (mounted.point / path).open("rb", buffering=0) as file,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        assert os.pread(file.fileno(), 100_000, 1_000_000) == content[1_000_000:1_100_000]
        last = pool.submit(os.pread, file.fileno(), 1, len(content) - 1)
        assert os.getxattr(mounted.point / path, "user.attachfs.verified") == b"no"
        assert not last.done()
        gate.set()
        assert last.result() == content[-1:]
        assert os.pread(file.fileno(), len(content), 0) == content
        # The whole, and a part asked for ahead of it, which this service does not send.
        assert ledger.counts["blob"] <= 2


def test_ctrl_c_on_a_program_that_waits_for_a_stalled_server_works(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    path = ledger.add("stalled", b"x" * 1000)
    gate = threading.Event()
    ledger.bend["blob"] = lambda _: gate.wait(60)
    with serve(ledger, tmp_path / "token") as server, run_mount(tmp_path, server=server) as mounted:
        waiting = subprocess.Popen(["cat", mounted.point / path], stdout=subprocess.DEVNULL)
        ledger.wait_for(lambda: ledger.counts["blob"] == 1)
        waiting.terminate()
        assert waiting.wait(5) < 0
        gate.set()
