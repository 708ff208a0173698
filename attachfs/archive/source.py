"""A bag's records, as the ledger view asks for them: one more source, which has all it will ever have.

What a bag does not have was refused when it was exported, and fails as on that day; or lies outside of what
was exported, and cannot be reached from here; or it did not exist.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
import trio

from attachfs import model
from attachfs.archive import layout
from attachfs.archive.entries import Exported, error_of
from attachfs.archive.folder import BagFolder
from attachfs.archive.report import Report
from attachfs.errors import AttachfsError, BadAnswer, NotFound, Unexpected, Unreachable, UsageError
from attachfs.model import NO_FILTERS, AssetRef, AttachmentRef, EventRef, is_uuid

T = TypeVar("T")

_RECORD_LIMIT = 8 * 2**20  # bytes of a record
_PAGE = 500  # records on a page
_REFUSED = 1_000_000  # refused attachments of which the reason is kept
_NAME = "attributes.arc_display_name"


class BagPage(NamedTuple):
    """One page of a listing."""

    records: list[dict[str, Any]]
    next_token: str


class Archive:
    """A bag that is mounted: its directory, what was exported, and what was refused.

    Args:
        folder: the bag's directory.

    Raises:
        UsageError: its report cannot be used.
    """

    def __init__(self, folder: BagFolder) -> None:
        self.folder = folder
        report = Report(folder)
        self.url = report.head.url
        places = [layout.parse_place(path) for path in report.head.paths]
        self._places = [place for place in places if place is not None]
        self.refused: dict[str, Exported] = {}
        for entry in report.refused():
            if len(self.refused) >= _REFUSED:
                raise UsageError(f"{folder.root}: {layout.REPORT} has more than {_REFUSED:,} refused files")
            self.refused[entry.path] = entry

    def absence(self, path: str) -> AttachfsError:
        """Return why something is not in the bag.

        Args:
            path: its path below the mount.
        """
        refused = self.refused.get(path)
        if refused is not None:
            return error_of(refused)
        if any(layout.covers(place, path) for place in self._places):
            return NotFound(f"{path} is not in the archive, which has everything that there was")
        return Unreachable(f"{path} is not in the archive: it lies outside of what was exported")


class BagSource:
    """Records from a bag.

    Args:
        archive: the bag.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._folder = archive.folder
        self._assets: list[str] | None = None
        self._by_name: dict[str, list[str]] | None = None

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> BagPage:
        """Return one page of all assets that pass the filters.

        Raises:
            AttachfsError: the listing was refused on export, or cannot be read.
        """
        return await _in_thread(functools.partial(self._read_assets, token, filters))

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> BagPage:
        """Return one page of an asset's events (None: of all assets') that pass the filters.

        Raises:
            AttachfsError: a listing was refused on export, or cannot be read.
        """
        return await _in_thread(functools.partial(self._read_events, asset, token, filters))

    async def asset(self, ref: AssetRef) -> bytes:
        """Return an asset's record. AttachfsError: the bag does not have it."""
        return await _in_thread(functools.partial(self._read, ref))

    async def event(self, ref: EventRef) -> bytes:
        """Return an event's record. AttachfsError: the bag does not have it."""
        return await _in_thread(functools.partial(self._read, ref))

    async def info(self, ref: AttachmentRef) -> bytes:
        """Return an attachment's `/info`. AttachfsError: the bag does not have it."""
        return await _in_thread(functools.partial(self._read, ref))

    # -- in a thread -----------------------------------------------------------------------------------

    def _read(self, ref: AssetRef | EventRef | AttachmentRef) -> bytes:
        path = layout.record_path(ref)
        try:
            return self._folder.read(path, _RECORD_LIMIT)
        except NotFound:
            raise self._archive.absence(ref.path) from None
        except OSError as error:
            raise Unexpected(f"{path} in the archive cannot be read: {error.strerror}") from error

    def _decoded(self, ref: AssetRef | EventRef) -> dict[str, Any]:
        return model.decode(self._read(ref), layout.record_path(ref))

    def _ids(self, folder: str, listing: str) -> list[str]:
        """Return the identities whose records stand in a directory."""
        refused = self._archive.refused.get(listing)
        if refused is not None:
            raise error_of(refused)
        names = self._folder.names(f"{layout.RECORDS}/{folder}")
        found = (name.removesuffix(".json") for name, _ in names if name.endswith(".json"))
        return [one for one in found if is_uuid(one)]

    def _all_assets(self) -> list[str]:
        if self._assets is None:
            self._assets = self._ids("assets", "assets")
        return self._assets

    def _read_assets(self, token: str, filters: Mapping[str, str]) -> BagPage:
        ids = self._all_assets()
        if set(filters) == {_NAME}:
            ids = self._called(filters[_NAME])
        elif filters:
            raise BadAnswer(f"an archive knows no filters {sorted(filters)}")
        start = _number(token)
        stop = start + _PAGE
        records = [self._decoded(AssetRef("assets", one)) for one in ids[start:stop]]
        return BagPage(records, str(stop) if stop < len(ids) else "")

    def _called(self, name: str) -> list[str]:
        """Return the assets of a name."""
        if self._by_name is None:
            found: dict[str, list[str]] = {}
            for one in self._all_assets():
                asset = model.parse_asset(self._decoded(AssetRef("assets", one)), None, lambda _: None)
                if asset is not None and asset.display_name:
                    found.setdefault(asset.display_name, []).append(one)
            self._by_name = found
        return self._by_name.get(name, [])

    def _read_events(self, asset: AssetRef | None, token: str, filters: Mapping[str, str]) -> BagPage:
        if asset is None:
            return self._read_all_events(token)
        self._read(asset)  # or it has none because it is not there
        ids = self._ids(f"{asset.path}/events", f"{asset.path}/events")
        start = _number(token)
        stop = start + _PAGE
        records = [self._decoded(EventRef(asset.realm, asset.asset, one)) for one in ids[start:stop]]
        records = [record for record in records if _passes(record, filters)]
        return BagPage(records, str(stop) if stop < len(ids) else "")

    def _read_all_events(self, token: str) -> BagPage:
        """Return the events of some assets, of the next ones from the one that the token numbers."""
        assets = self._all_assets()
        number = _number(token)
        records: list[dict[str, Any]] = []
        while number < len(assets) and len(records) < _PAGE:
            asset = AssetRef("assets", assets[number])
            ids = self._ids(f"{asset.path}/events", f"{asset.path}/events")
            records += [self._decoded(EventRef(asset.realm, asset.asset, one)) for one in ids]
            number += 1
        return BagPage(records, str(number) if number < len(assets) else "")


def _passes(record: dict[str, Any], filters: Mapping[str, str]) -> bool:
    time = model.parse_time_ns(record.get("timestamp_accepted"))
    for name, value in filters.items():
        bound = model.parse_time_ns(value)
        if name == "timestamp_accepted_since":
            fits = time >= bound
        elif name == "timestamp_accepted_before":
            fits = time < bound
        else:
            raise BadAnswer(f"an archive knows no filter {name!a}")
        if not fits:
            return False
    return True


def _number(token: str) -> int:
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise BadAnswer("an archive gave no such page token")
    return int(token or 0)


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await trio.to_thread.run_sync(work)
    except OSError as error:
        raise Unexpected(f"the archive cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BadAnswer(f"a record in the archive cannot be read: {error}") from error
