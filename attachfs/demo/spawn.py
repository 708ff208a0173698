"""Start the demo ledger as a child process, ask it for its counts, and end it. Standard library only."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ENDS_WITHIN = 10.0  # seconds
_ANSWERS_WITHIN = 30.0


@dataclass(frozen=True)
class DemoServer:
    """A demo ledger that runs.

    `token_file` is set if `--token-file` was given; `story` has the paths of `story.Story` by name.
    """

    url: str
    pid: int
    token_file: Path | None
    story: dict[str, str]

    def requests(self) -> dict[str, Any]:
        """Return what was counted so far; see `requestlog`. Needs plain HTTP."""
        found: dict[str, Any] = json.loads(self._request("GET"))
        return found

    def reset(self) -> None:
        """Begin to count afresh."""
        self._request("DELETE")

    def _request(self, method: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/demo/requests", method=method)  # noqa: S310 - our own child
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_ANSWERS_WITHIN) as answer:
            body: bytes = answer.read()
        return body


@contextlib.contextmanager
def spawn_server(args: Sequence[str] = ()) -> Iterator[DemoServer]:
    """Run `python -m attachfs.demo.server` with `args`, from the moment it listens to the end of the block.

    Its messages go to our standard error. It ends with us, however we end.

    Raises:
        RuntimeError: it ended before it listened.
    """
    command = [sys.executable, "-m", "attachfs.demo.server", "--die-with-stdin", *args]
    # The child finds this very package, wherever it is started.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own module
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the demo ledger did not start (exit status {process.wait()})")
            ready = json.loads(line)
            token_file = ready.get("token_file")
            token_path = Path(token_file) if token_file else None
            yield DemoServer(ready["url"], process.pid, token_path, ready.get("story", {}))
        finally:
            process.stdin.close()
            try:
                process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
