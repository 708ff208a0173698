"""A walk from asset to asset, below `assets` or `by-name`: what comes next, and what is worth reading whole.

A walk over a large ledger outlives the records that it goes by, and would ask for each asset's events by
itself. From some length on it is cheaper to read the listing of all assets anew before its time is over, and
the listing of all events instead of one for each asset: 500 records a request. Both are done in the
background, for as long as the walk goes on, and only if they cost a fraction of the requests that the rest
of the walk would make at its pace.
"""

import logging
from collections.abc import Callable

from attachfs.background import TaskStarter
from attachfs.errors import AttachfsError
from attachfs.fuse.access_order import AccessPattern, InThread
from attachfs.ledger.view import Ledger
from attachfs.namespace.directory import Directory
from attachfs.namespace.nodes import Node, Place
from attachfs.namespace.tree import Tree

log = logging.getLogger(__name__)

_LONG = 200  # events of single assets that a walk has asked for before all of them are read
_LONGER = 8  # by how much longer it has to be once that was of no use
_CHEAPER = 4  # times fewer requests have to be made
_STEPS = 4  # the walk has stopped if it has not moved for as long as so many steps took
_PAUSE = 0.5  # seconds, at least


class Crawl:
    """A walk over the entries of a directory of assets.

    Args:
        directory: the directory.
        number: an inode's number, which some programs sort by.
        clock: seconds, monotonic.
        in_thread: see AccessPattern.
    """

    def __init__(
        self,
        directory: Directory,
        number: Callable[[Node], int],
        clock: Callable[[], float],
        in_thread: InThread | None = None,
    ) -> None:
        self.directory = directory
        self._clock = clock
        self._begun = 0.0
        self._moved = 0.0  # when it made its last step
        self.streak = 0
        self.requested = 0  # assets whose events were asked for one by one
        self.pause_limit = _LONG
        self.has_read_events = False
        child = directory.child
        self.pattern: AccessPattern[str] = AccessPattern(
            [], (lambda name: number(child(name)), lambda name: name), in_thread
        )

    def step(self, name: str) -> int:
        """Take note that the walk has come to an entry; return how many steps it has kept to one order."""
        self.pattern.extend(self.directory.names)
        self.streak = self.pattern.step(name)
        self._moved = self._clock()
        if not self.streak:
            self._begun = self._moved
            self.requested = 0
        return self.streak

    def soon(self, seconds: float) -> float:
        """Return how many entries the walk will come to within a time, at its pace."""
        return min(self.pattern.remaining, seconds / max(self._step_takes, 1e-6))

    @property
    def done(self) -> bool:
        """Whether the walk has come to the last entry."""
        return self.streak > 0 and self.directory.complete and not self.pattern.remaining

    @property
    def goes_on(self) -> bool:
        """Whether the walk still moves."""
        return self._clock() - self._moved <= max(_PAUSE, _STEPS * self._step_takes)

    @property
    def _step_takes(self) -> float:
        return (self._moved - self._begun) / max(self.streak, 1)


class BulkRefresher:
    """Reads the listings of all assets and of all events for a walk.

    Args:
        ledger: keeps what is read.
        tree: knows the names.
        nursery: where the reading runs.
    """

    def __init__(self, ledger: Ledger, tree: Tree, nursery: TaskStarter) -> None:
        self._ledger = ledger
        self._tree = tree
        self._nursery = nursery
        self._durations = {"assets": 0.0, "events": 0.0}  # seconds
        self._not_before = {"assets": 0.0, "events": 0.0}  # after a reading that came to nothing
        self._running = ""
        self._next_check = 0.0

    @property
    def reads_events(self) -> bool:
        """Whether the listing of all events is being read."""
        return self._running == "events"

    def consider(self, crawl: Crawl) -> None:
        """Begin what is worth it; called at each step of a walk."""
        now = self._ledger.clock()
        # A single directory, or a search that ends early, must not pay for a listing of everything: the walk
        # has to have asked for many assets' events one by one, and to be where it could go on for long.
        begins_events = crawl.requested >= crawl.pause_limit and now >= self._not_before["events"]
        if self._running or crawl.streak < _LONG or (now < self._next_check and not begins_events):
            return
        self._next_check = now + min(1.0, self._ledger.ttl / 60)
        soon = crawl.soon(self._ledger.ttl)
        # What is over first comes first: both take their time, one after the other.
        for remaining, kind, pages in sorted(
            zip(
                self._ledger.bulk.ttl_remaining(),
                ("assets", "events"),
                self._ledger.bulk.pages(),
                strict=True,
            )
        ):
            wanted = kind == "assets" or remaining > 0 or crawl.has_read_events or begins_events
            # Not due yet; or the last reading came to nothing, and this one would most probably too.
            if not wanted or remaining >= self._early(kind) or now < self._not_before[kind]:
                continue
            if soon > _CHEAPER * pages:
                self._running = kind  # one at a time: each takes room while it runs
                self._nursery.start_soon(self._read, kind, crawl, int(soon / _CHEAPER) + 1)
                return
            if begins_events:
                crawl.pause_limit = crawl.requested * 2  # worth it only for a longer walk: ask again then

    def _early(self, kind: str) -> float:
        """Return how many seconds before its time is over a listing is to be read again."""
        needed = self._durations[kind] + sum(self._durations.values()) + self._ledger.ttl / 10
        return min(needed, self._ledger.ttl / 2)

    async def _read(self, kind: str, crawl: Crawl, most: int) -> None:
        begun = self._ledger.clock()

        def go_on(pages: int) -> bool:
            return crawl.goes_on and pages < most

        done = False
        try:
            if kind == "events":
                done = await self._ledger.bulk.read_all_events(go_on)
            else:
                done = await self._ledger.bulk.renew_assets(go_on)
                if done and crawl.directory.node is Place.BY_NAME:
                    await self._tree.by_name.renew(lambda _: True)
        except AttachfsError as error:
            log.debug("a listing could not be read ahead: %s", error.reason)
        finally:
            self._running = ""
        now = self._ledger.clock()
        self._durations[kind] = now - begun
        self._not_before[kind] = now if done else now + self._ledger.ttl
        if kind == "events":
            crawl.pause_limit = _LONG if done else max(crawl.requested, _LONG) * _LONGER
            crawl.requested = 0 if done else crawl.requested
            crawl.has_read_events = done
        log.debug(
            "the listing of all %s: %s, %.1f s", kind, "read" if done else "not read", self._durations[kind]
        )
