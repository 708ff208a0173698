"""A mount of a faulty ledger, in which many cases go wrong one after another."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.mount.conftest import Mounted, run_mount
from tests.services.faulty_ledger import PATIENCE, TOKEN, Case, Ledger, serving
from tests.services.threaded_ledger import Served

_ESTABLISHED = "01"  # in /proc/net/tcp


class Log(list[str]):
    """A log that can be waited for."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(lines)
        self._grown = threading.Condition()

    def append(self, line: str) -> None:
        with self._grown:
            super().append(line)
            self._grown.notify_all()

    def wait_for(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait for a line that contains `text`."""
        with self._grown:
            found = self._grown.wait_for(lambda: any(text in line for line in self), seconds)
        assert found, f"{text!r} was not logged:\n" + "\n".join(self[-20:])

    def told(self, text: str) -> list[str]:
        """Return the warnings and errors that mention `text`."""
        with self._grown:
            return [line for line in self if text in line and (" WARNING " in line or " ERROR " in line)]

    def wait_until_told(self, text: str) -> list[str]:
        """Wait for a warning or error that mentions `text`; return all of them. It may follow the errno."""
        with self._grown:
            self._grown.wait_for(lambda: self.told(text), PATIENCE)
        return self.told(text)


class Held(NamedTuple):
    """What a mount holds: open files beside its live connections, KiB of memory, and its own figures."""

    open_files: list[str]
    rss: int
    status: dict[str, Any]


@dataclass
class Lane:
    """A mounted ledger, in which things go wrong one after another."""

    ledger: Ledger
    mounted: Mounted
    log: Log
    token_file: Path | None
    _fresh: int = field(default=0)

    @property
    def point(self) -> Path:
        """The mount point."""
        return self.mounted.point

    def fresh(self, size: int = 2000) -> Case:
        """Return a good case that nobody has looked at."""
        self._fresh += 1
        return self.ledger.add(Case(f"good {self._fresh}", size))

    def serves_a_good_file(self, case: Case | None = None) -> None:
        """Read a file that is not cached, and have all that was logged before at hand."""
        case = case or self.fresh()
        assert (self.point / case.path).read_bytes() == case.content
        self.log.wait_for(f"{case.blob}: 200")

    def serves_a_good_file_soon(self, errors: tuple[int, ...], seconds: float = PATIENCE) -> None:
        """Read a fresh file; until it can be read, only these errors are allowed."""
        case = self.fresh()
        ends = time.monotonic() + seconds
        while True:
            try:
                assert (self.point / case.path).read_bytes() == case.content
            except OSError as error:
                if error.errno not in errors or time.monotonic() > ends:
                    raise
            else:
                break
        self.log.wait_for(f"{case.blob}: 200")

    def process_file(self, name: str) -> str:
        """Return a file of the mount's in /proc."""
        return Path(f"/proc/{self.mounted.process.pid}/{name}").read_text(errors="replace")

    def forget(self) -> None:
        """Have the mount, and the kernel, forget names and attributes."""
        before = sum("names and attributes are forgotten" in line for line in self.log)
        self.mounted.process.send_signal(signal.SIGHUP)
        with self.log._grown:
            assert self.log._grown.wait_for(
                lambda: sum("names and attributes are forgotten" in line for line in self.log) > before,
                PATIENCE,
            )

    def held(self) -> Held:
        """Return what the mount holds once what it still has to do in a moment is done, names forgotten.

        The pool notices that connections have ended when it is next asked for one, but keeps those that rest
        for a moment; and the cache's folders are synced a moment after a blob got its name. What is leaked is
        what is never closed, however long one waits.
        """
        self.forget()
        self.ledger.drop()
        patience = time.monotonic() + PATIENCE
        self.serves_a_good_file()
        while ended := self.ended_connections():
            assert time.monotonic() < patience, f"connections that have ended are never closed: {ended}"
            self.serves_a_good_file()
        self.forget()
        blobs = str(self.mounted.cache / "blobs")
        while syncing := [one for one in self.descriptors() if one.startswith(blobs)]:
            assert time.monotonic() < patience, f"never closed: {syncing}"
            threading.Event().wait(0.02)
        memory = dict(line.split(":", 1) for line in self.process_file("status").splitlines())
        live = self.sockets("tcp", _ESTABLISHED)
        open_files = [one for one in self.descriptors() if one not in live]
        return Held(open_files, int(memory["VmRSS"].split()[0]), self.mounted.status())

    def descriptors(self) -> list[str]:
        """Return what each of the mount's descriptors stands for."""
        found = []
        for path in Path(f"/proc/{self.mounted.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(path.readlink()))
        return found

    def ended_connections(self) -> set[str]:
        """Return those of the mount's descriptors that are connections which the other side has ended.

        One that was reset is in no table of the kernel's any more.
        """
        found = {one for one in self.descriptors() if one.startswith("socket:")}
        return found - self.sockets("tcp", _ESTABLISHED) - self.sockets("unix") - self.sockets("netlink")

    def sockets(self, table: str, state: str = "") -> set[str]:
        """Return the sockets in one of the tables of /proc/net, as links in /proc/PID/fd name them."""
        head, *rows = (line.split() for line in self.process_file(f"net/{table}").splitlines())
        inode = {"tcp": 9, "unix": 6}.get(table, len(head) - 1)
        return {f"socket:[{row[inode]}]" for row in rows if not state or row[3] == state}


@contextlib.contextmanager
def lane(
    base: Path,
    *options: str,
    ledger: Ledger | None = None,
    url: str | None = None,
    environ: dict[str, str] | None = None,
    token: bool = True,
    prelude: str = "",
) -> Iterator[Lane]:
    """Mount a ledger (a new one if none is given) with a token, logging everything."""
    token_file = base / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(f"Authorization: Bearer {TOKEN}\n")
    with contextlib.ExitStack() as stack:
        ledger = ledger or stack.enter_context(serving({TOKEN}))
        served = Served(url or ledger.url, token_file if token else None)
        mounted = stack.enter_context(
            run_mount(base, "--log-level=debug", *options, server=served, environ=environ, prelude=prelude)
        )
        mounted.log = log = Log(mounted.log)
        yield Lane(ledger, mounted, log, served.token_file)
        assert not any(TOKEN in line for line in log)


# -- scripts ---------------------------------------------------------------------------------------
