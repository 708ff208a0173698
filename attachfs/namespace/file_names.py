"""What an asset's or event's files are called in `by-name`.

**A file** is called by its attribute's `arc_file_name`, else `arc_display_name` unless that says
`arc_primary_image`, else the attribute's key; an attachment with several names has a link for each. All
files of a directory come from one record, so here nobody has a shared name plain: each has its digits.
A name without an extension gets one from the MIME type, which only `/info` knows: it is asked for those
files alone, side by side, when the directory is listed; and for a lookup only if the name may be theirs.
Where the service says that the file is not there, may not be seen or has an unusable `/info`, such a file
has no extension, and cannot be opened either. If it cannot be asked (an outage, a rate limit), the listing
or lookup fails: a file must not change its name because of the weather.
"""

import trio

from attachfs.errors import AccessDenied, AttachfsError, BadAnswer, NotFound
from attachfs.ledger.view import Ledger
from attachfs.model import EVENTS, AssetRef, Attachment, AttachmentRef, EventRef
from attachfs.namespace import safe_names

_PRIMARY = "arc_primary_image"  # a common display name that says nothing
# So many characters of a name are left whatever suffix and extension it gets, even where it is cut.
_ALIKE = 10
# The service has answered, and the file cannot be opened whatever its name.
_ANSWERED = (NotFound, AccessDenied, BadAnswer)

Files = dict[str, AttachmentRef]


class FileNames:
    """The names of files.

    Args:
        ledger: the ledger view.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def all(self, owner: AssetRef | EventRef) -> Files:
        """Return the links in an asset's or event's directory, in the order of their names.

        Raises:
            AttachfsError: the record, or an `/info` that a name needs, could not be asked for.
        """
        return (await self._files(owner, None))[0]

    def cached(self, owner: AssetRef | EventRef) -> Files | None:
        """Return the same if nothing has to be asked for it."""
        record = self._ledger.fresh_record(owner)
        if record is None:
            return None
        mentioned = {(_file_base(one), one.id) for one in record.attachments}
        if not all(safe_names.extension(base) for base, _ in mentioned):
            return None
        return _distinct(owner, list(mentioned))

    async def find(self, owner: AssetRef | EventRef, name: str) -> AttachmentRef:
        """Return the file that is called so.

        Raises:
            NotFound: there is none.
            AttachfsError: the record, or an `/info` that a name needs, could not be asked for.
        """
        begun = self._ledger.clock()
        files, failure = await self._files(owner, name)
        if name not in files and failure is None and not await self._ledger.lacks(owner, begun):
            files, failure = await self._files(owner, name)
        if name not in files:
            # What has no usable /info may be called so by one that is: that is not "does not exist".
            raise failure or NotFound(f"{owner.path}: no file is called {name!a}")
        return files[name]

    async def _files(
        self, owner: AssetRef | EventRef, wanted: str | None
    ) -> tuple[dict[str, AttachmentRef], BadAnswer | None]:
        """Return the links, and an `/info` that was not usable. `wanted`: only that name need be right."""
        attachments = (await self._ledger.record(owner)).attachments
        mentioned = {(_file_base(one), one.id) for one in attachments}
        if wanted is not None:
            # Who has an extension already, or may come to be called so, or have the same with a suffix.
            mentioned = {
                (base, one)
                for base, one in mentioned
                if safe_names.extension(base) or wanted.startswith(safe_names.beginning(base, _ALIKE))
            }
        bare = sorted({one for base, one in mentioned if not safe_names.extension(base)})
        types = await self._mime_types([owner.attachment(one) for one in bare])
        named = []
        for base, one in mentioned:
            # A file may be mentioned with an extension by one attribute, and without one by another.
            cached = "" if safe_names.extension(base) else types.get(one)
            ending = safe_names.extension_for(cached) if isinstance(cached, str) else ""
            named.append((safe_names.with_extension(base, ending) if ending else base, one))
        failures = (cached for cached in types.values() if isinstance(cached, BadAnswer))
        return _distinct(owner, named), next(failures, None)

    async def _mime_types(self, files: list[AttachmentRef]) -> dict[str, str | AttachfsError]:
        """Ask for `/info`s side by side; return MIME types, or why there is none, by identity."""
        types: dict[str, str | AttachfsError] = {}

        async def fetch(file: AttachmentRef) -> None:
            try:
                types[file.attachment] = (await self._ledger.info(file)).mime_type
            except AttachfsError as error:
                types[file.attachment] = error

        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(fetch, file)
        for file in files:
            outcome = types[file.attachment]
            if isinstance(outcome, AttachfsError) and not isinstance(outcome, _ANSWERED):
                raise outcome
        return types


def _distinct(owner: AssetRef | EventRef, named: list[tuple[str, str]]) -> Files:
    reserved = (EVENTS,) if isinstance(owner, AssetRef) else ()
    return {name: owner.attachment(one) for name, one in safe_names.distinct(named, reserved).items()}


def _file_base(attachment: Attachment) -> str:
    """Return what a file is called, before it has got an extension."""
    display_name = "" if attachment.display_name == _PRIMARY else attachment.display_name
    called = (safe_names.safe_file(text) for text in (attachment.file_name, display_name, attachment.key))
    return next(filter(None, called), attachment.id)
