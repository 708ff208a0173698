"""Listings, read page by page by whoever gets there first, and what brings the pages."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio

from attachfs.errors import BadAnswer, TimedOut, Unreachable
from attachfs.model import NO_FILTERS, AssetRef, AttachmentRef, EventRef

COULD_NOT_ASK = (Unreachable, TimedOut)


class Page(Protocol):
    """One page of a listing, as the client returns it."""

    @property
    def records(self) -> list[dict[str, object]]:
        """The page's records."""
        ...

    @property
    def next_token(self) -> str:
        """The next page's token, "" at the end."""
        ...


class Source(Protocol):
    """What the ledger view asks of the service's client."""

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> Page:
        """Return one page of all assets that pass the filters."""
        ...

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> Page:
        """Return one page of an asset's events (None: of all assets') that pass the filters."""
        ...

    async def asset(self, ref: AssetRef) -> bytes:
        """Return an asset's record."""
        ...

    async def event(self, ref: EventRef) -> bytes:
        """Return an event's record."""
        ...

    async def info(self, ref: AttachmentRef) -> bytes:
        """Return an attachment's `/info`."""
        ...


class Tokens:
    """The page tokens that one reading of a listing has met.

    Args:
        what: the listing, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._met: set[str] = set()

    def meet(self, token: str) -> None:
        """Take note of the next page's token.

        Raises:
            BadAnswer: it was met before.
        """
        if token in self._met:
            raise BadAnswer(f"{self._what}: the listing goes round in circles (a page token came twice)")
        if token:
            self._met.add(token)


class Listing:
    """The ids in a directory, page by page, in the service's order, each once.

    Args:
        fetch: returns the ids of the page with a token ("" for the first), and the next page's token.
        what: the directory's path, for messages.
        before: an older, complete listing, told if the service cannot be reached for the first page.
    """

    __slots__ = (
        "_before",
        "_fetch",
        "_lock",
        "_seen",
        "_token",
        "_tokens",
        "_what",
        "complete",
        "ids",
        "old",
        "starts",
    )

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[tuple[list[str], str]]],
        what: str,
        before: "Listing | None" = None,
    ) -> None:
        self._fetch = fetch
        self._what = what
        self._before = before
        self._lock: trio.Lock | None = None
        self._token = ""
        self._tokens: Tokens | None = None
        self._seen: set[str] = set()
        self.ids: list[str] = []
        self.starts: list[tuple[int, str]] = []  # of each page: its first index and its token
        self.complete = False
        self.old = False  # whether it is an older one, for want of a new one

    async def reach(self, index: int) -> bool:
        """Read pages until `index` is among `ids`; return False if the listing ends before it.

        Raises:
            AttachfsError: a page could not be had. What came before stays; the next call asks again.
        """
        while index >= len(self.ids) and not self.complete:
            if self._lock is None:
                self._lock = trio.Lock()
            async with self._lock:
                # Another reader may have brought the page while we waited for the lock.
                if index >= len(self.ids) and not self.complete:
                    await self._turn_page()
        return index < len(self.ids)

    async def _bring(self, token: str) -> tuple[list[str], str]:
        """Return the ids of the page with a token, and the next page's token."""
        return await self._fetch(token)

    def _add(self, ids: list[str]) -> None:
        for one in ids:
            if one not in self._seen:  # a listing that shifts between pages repeats entries
                self._seen.add(one)
                self.ids.append(one)

    async def _turn_page(self) -> None:
        try:
            ids, token = await self._bring(self._token)
        except COULD_NOT_ASK:
            if self._before is None or self.ids:
                raise
            self.ids = self._before.ids
            self.complete = self.old = True
            return
        self._before = None
        start = len(self.ids)
        self._add(ids)
        if self._tokens is None:
            self._tokens = Tokens(self._what)
        self._tokens.meet(token)
        self.starts.append((start, self._token))
        if token:
            self._token = token
        else:
            self.complete = True
            self._seen = set()
            self._tokens = self._lock = None


class Listed(Listing):
    """A listing that is known already.

    Args:
        ids: what is in it.
    """

    __slots__ = ()

    def __init__(self, ids: list[str]) -> None:
        super().__init__(no_page, "")
        self.ids = ids
        self.starts = [(0, "")]
        self.complete = True


async def no_page(_token: str) -> tuple[list[str], str]:
    """Return a page with nothing on it, the last."""
    return [], ""
