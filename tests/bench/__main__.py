"""The command behind `scripts/bench`: measures attachfs beside others and tells what came of it."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tests.bench import costs, results
from tests.bench.picture import draw
from tests.bench.processes import Failed, ask, mounts_below, server, unmount
from tests.bench.work import QUICK, WORK, Bench, Sizes


def _say(text: str) -> None:
    sys.stderr.write(f"scripts/bench: {text}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure attachfs beside rclone, curl, a sequential client, a local file and a do-nothing"
        " filesystem, on the same bytes from the same origin, in one run.",
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each row (default 3)")
    parser.add_argument("--only", action="append", choices=list(WORK), help="only this work; may be repeated")
    parser.add_argument("--delay", type=float, default=50, metavar="MS", help="of a round trip (default 50)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one run: whether it works at all")
    parser.add_argument(
        "--costs", action="store_true", help="only count what a small file costs: tasks, system calls, CPU"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the picture there")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="work there: 5 GiB on a real disk")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing: tell what is there")
    return parser.parse_args()


@contextlib.contextmanager
def _workplace(below: Path | None) -> Iterator[Path]:
    """Return a directory that is gone afterwards, with whatever is mounted in it."""
    base = Path(tempfile.mkdtemp(prefix="attachfs-bench-", dir=below)).resolve()
    try:
        yield base
    finally:
        for point in mounts_below(base):
            unmount(point)
        if mounts_below(base):
            _say(f"{base} is left behind: something is mounted in it")
        else:
            shutil.rmtree(base, ignore_errors=True)


def _measure(options: argparse.Namespace, found: results.Results) -> None:
    runs = 1 if options.quick else options.runs
    with _prepared(options, found) as bench:
        for number in range(runs):
            for name in options.only or WORK:
                _say(f"run {number + 1} of {runs}: {name}")
                try:
                    WORK[name](bench)
                except Failed as error:
                    found.note(f"{name}: {error}")


@contextlib.contextmanager
def _prepared(options: argparse.Namespace, found: results.Results) -> Iterator[Bench]:
    """Return what the work needs: the origin, near and far, and a place."""
    sizes = QUICK if options.quick else Sizes()
    shapes = [f"{name}={','.join(map(str, shape))}" for name, shape in sizes.shapes().items()]
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(_workplace(options.dir))
        near = stack.enter_context(server("tests.bench.origin", *shapes))
        far = stack.enter_context(server("tests.bench.proxy", str(near), str(options.delay)))
        bench = Bench(sizes, near, far, options.delay / 1000, base, found)
        if not bench.rclone:
            found.note("rclone: not measured: it is not installed (Debian's package rclone)")
        _warm(bench)
        yield bench


def _warm(bench: Bench) -> None:
    """Let the origin compute its digests, which nobody should wait for."""
    for ledger in ("copy", "small", "big", "many"):
        ask(bench.near, f"-/warm/{ledger}")


def _about(options: argparse.Namespace) -> dict[str, object]:
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpus": os.cpu_count(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "delay_ms": options.delay,
        "quick": options.quick,
    }


def main() -> None:
    """Run the command."""
    options = _arguments()

    def stop(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    found = results.Results()
    if options.costs:
        with _prepared(options, found) as bench:
            sys.stdout.write(costs.table(costs.measure(bench)) + "\n")
        return
    if options.from_json:
        about = json.loads(options.from_json.read_text(encoding="utf-8"))
        found.load(about)
    else:
        about = _about(options)
        try:
            _measure(options, found)
        except KeyboardInterrupt:
            found.note("not all was measured: interrupted")
        except Failed as error:
            found.note(f"not all was measured: {error}")
    sys.stdout.write(results.table(found) + "\n")
    if options.json:
        options.json.write_text(json.dumps(found.as_json(about), indent=1) + "\n", encoding="utf-8")
    if options.svg:
        machine = f"{about['cpus']} CPUs, Linux {about['kernel']}"
        caption = f"{machine}, a round trip of {about['delay_ms']:g} ms where it says 50 ms"
        options.svg.write_text(draw(found, caption), encoding="utf-8")


if __name__ == "__main__":
    main()
