"""What a small file costs: `scripts/bench --costs` copies many and prints a table, per file.

Three copies with a new mount each, because counting and tracing cost more than what they look at: one that is
only timed, one that counts inside the process (`counted.py`), and one under strace, where that is installed.
The figures do not depend on how fast or busy the machine is, but for the processor time; compare that with
another run's of the same minutes.
"""

import contextlib
import shutil
import signal
import subprocess
from typing import NamedTuple

from tests.bench.counted import COUNTED, Counters
from tests.bench.processes import Failed, Mount, mount, run
from tests.bench.work import Bench, event_path

_CALLS = 15  # kinds of system calls that are told by name
_TRACER_WITHIN = 30.0  # seconds


class Costs(NamedTuple):
    """What one file costs. `calls`: system calls by name; None: strace is not there."""

    cpu: float  # seconds
    counted: dict[str, float]
    calls: dict[str, float] | None


def measure(bench: Bench) -> Costs:
    """Copy the bench's small files three times."""
    files = bench.sizes.files
    with bench.attachfs("copy", far=True) as mounted:
        before = mounted.cpu()
        _copy(bench, mounted)
        cpu = (mounted.cpu() - before) / files
    with bench.directory() as base:
        counters = Counters(base / "counters")
        command = bench.attachfs_command("copy", base, far=True)
        at = command.index("attachfs")
        command[at : at + 1] = ["tests.bench.counted", str(base / "counters")]
        with mount(command, base / "mnt", base) as mounted:
            earlier = counters.read()
            _copy(bench, mounted)
            now = counters.read()
    counted = {
        name: (later - sooner) / files for name, sooner, later in zip(COUNTED, earlier, now, strict=True)
    }
    calls = None
    if shutil.which("strace"):
        with bench.attachfs("copy", far=True) as mounted:
            calls = {name: count / files for name, count in _traced(bench, mounted).items()}
    return Costs(cpu, counted, calls)


def _copy(bench: Bench, mounted: Mount) -> None:
    where, _ = event_path(bench.sizes.files)
    with bench.directory() as target:
        run(["cp", "-r", mounted.point / where, target])


def _traced(bench: Bench, mounted: Mount) -> dict[str, int]:
    """Return the system calls of all of the mount's threads during a copy.

    Raises:
        Failed: strace may not attach, or says something else than it used to.
    """
    with bench.directory() as base:
        summary = base / "summary"
        command = ["strace", "-f", "-c", "-o", str(summary), "-p", str(mounted.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            attached = tracer.stderr.readline()  # it says so
            if "attached" not in attached:
                raise Failed(f"strace: {attached.strip()}")
            with contextlib.ExitStack() as ends:
                ends.callback(tracer.wait, _TRACER_WITHIN)
                ends.callback(tracer.send_signal, signal.SIGINT)
                _copy(bench, mounted)
            tracer.stderr.close()
        return parse_summary(summary.read_text(encoding="utf-8"))


def parse_summary(text: str) -> dict[str, int]:
    """Return how often each system call was made, of strace's own table, the most frequent first."""
    calls = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdecimal() and fields[-1] != "total":
            calls[fields[-1]] = int(fields[3])
    if not calls:
        raise Failed(f"strace counted nothing: {text.strip()[:200]}")
    return dict(sorted(calls.items(), key=lambda pair: -pair[1]))


def table(costs: Costs) -> str:
    """Return the table in Markdown."""
    rows = [("CPU", f"{costs.cpu * 1000:.2f} ms")]
    rows += [(name, f"{number:.2f}") for name, number in costs.counted.items()]
    if costs.calls is None:
        rows.append(("system calls", "not counted: strace is not installed"))
    else:
        # Threads that wait for the interpreter's lock make as many of these as a traced call takes long.
        waits = costs.calls.get("futex", 0)
        rows.append(("system calls but futex", f"{sum(costs.calls.values()) - waits:.1f}"))
        named = [(name, number) for name, number in costs.calls.items() if name != "futex"]
        rows += [(f"… {name}", f"{number:.2f}") for name, number in named[:_CALLS]]
    return "\n".join(
        ["| of a small file | each |", "|---|---|", *(f"| {what} | {how} |" for what, how in rows)]
    )
