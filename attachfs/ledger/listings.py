"""Listings, read page by page by whoever gets there first, and what brings the pages."""

import math
from collections.abc import Mapping
from typing import Protocol

import trio

from attachfs.errors import BadAnswer
from attachfs.ledger.outage import NO_ANSWER
from attachfs.model import NO_FILTERS, AssetRef, AttachmentRef, EventRef


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


class Pager(Protocol):
    """Brings the pages of a listing. `retry_at`: when to ask the service again, if what came is stale."""

    retry_at: float

    async def page(self, token: str) -> tuple[list[str], str]:
        """Return the ids on the page with a token ("" for the first), and the next page's token.

        Raises:
            AttachfsError: it could not be had.
        """
        ...


class Listing:
    """The ids in a directory, page by page, in the service's order, each once.

    Args:
        pager: brings the pages.
        what: the directory's path, for messages.
        before: an older, complete listing, served if the service cannot be reached for the first page.
    """

    __slots__ = (
        "_before",
        "_lock",
        "_seen",
        "_token",
        "_tokens",
        "_what",
        "complete",
        "ids",
        "old",
        "pager",
        "starts",
    )

    def __init__(self, pager: Pager | None, what: str, before: "Listing | None" = None) -> None:
        self.pager = pager
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

    @classmethod
    def of(cls, ids: list[str]) -> "Listing":
        """Return a listing that is known already."""
        listing = cls(None, "")
        listing.ids = ids
        listing.starts = [(0, "")]
        listing.complete = True
        return listing

    @property
    def retry_at(self) -> float:
        """When the service is to be asked again, on the ledger's clock: never, if none of it is stale."""
        return math.inf if self.pager is None else self.pager.retry_at

    async def load_to(self, index: int) -> bool:
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

    async def _turn_page(self) -> None:
        assert self.pager is not None
        try:
            ids, token = await self.pager.page(self._token)
        except NO_ANSWER:
            if self._before is None or self.ids:
                raise
            self._serve_old(self._before)
            return
        self._before = None
        start = len(self.ids)
        for one in ids:
            if one not in self._seen:  # a listing that shifts between pages repeats entries
                self._seen.add(one)
                self.ids.append(one)
        if self._tokens is None:
            self._tokens = Tokens(self._what)
        self._tokens.meet(token)
        self.starts.append((start, self._token))
        if token:
            self._token = token
        else:
            self.complete = True
            self._drop_helpers()

    def _serve_old(self, before: "Listing") -> None:
        self.ids = before.ids
        self.complete = self.old = True
        self._drop_helpers()

    def _drop_helpers(self) -> None:
        """Keep no more of a complete listing than is needed of it."""
        self._seen = set()
        self._before = self._tokens = self._lock = None
