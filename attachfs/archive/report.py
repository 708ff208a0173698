"""`report.json`: what was exported, what was not and why. Written and read a line at a time.

One JSON document, laid out so that each attachment has a line of its own: a bag of a hundred thousand is read
within a bounded memory, by this module and by tools that work on lines.
"""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TextIO

import msgspec

from attachfs.archive import layout
from attachfs.archive.entries import Exported
from attachfs.archive.folder import BagFolder
from attachfs.errors import AttachfsError, BadAnswer, UsageError

FORMAT = "attachfs-export-1"
_LINE_LIMIT = 256 * 1024  # bytes
_HEAD_LIMIT = 2**20  # bytes before the first attachment
_REFUSED, _FILES, _END, _LAST = '"refused": [', '"files": [', "],", "]"


class Head(NamedTuple):
    """What a report says of the export as a whole."""

    url: str
    paths: list[str]
    totals: dict[str, Any]
    about: dict[str, Any]


def write(
    file: TextIO,
    about: dict[str, Any],
    refused: Iterable[Exported],
    files: Iterable[dict[str, Any] | Exported],
) -> None:
    """Write a report.

    Args:
        file: where to.
        about: what is said of the export as a whole; `url`, `paths` and `totals` among it.
        refused: what is not in the bag, and why.
        files: what is.
    """
    head = json.dumps({"format": FORMAT, **about}, indent=1, ensure_ascii=True)
    file.write(head.removesuffix("\n}") + f",\n{_REFUSED}")
    _write_lines(file, refused)
    file.write(f"{_END}\n{_FILES}")
    _write_lines(file, files)
    file.write(f"{_LAST}\n}}\n")


def _write_lines(file: TextIO, entries: Iterable[dict[str, Any] | Exported]) -> None:
    before = "\n"
    for entry in entries:
        value = msgspec.to_builtins(entry)
        file.write(before + json.dumps(value, ensure_ascii=True))
        before = ",\n"
    file.write("\n")


class Report:
    """A bag's report, read.

    Args:
        folder: the bag.

    Raises:
        UsageError: there is none, or it is not one of ours.
    """

    def __init__(self, folder: BagFolder) -> None:
        self._folder = folder
        lines: list[str] = []
        length = 0
        try:
            for line in self._lines():
                if line == _REFUSED:
                    break
                length += len(line)
                if length > _HEAD_LIMIT:
                    raise BadAnswer("it does not say what was refused")
                lines.append(line)
            else:
                raise BadAnswer("it does not say what was refused")
            about = msgspec.json.decode("\n".join(lines).rstrip().removesuffix(",") + "}")
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise BadAnswer(f"it is not of the format {FORMAT}")
            url, paths, totals = (about.get(key) for key in ("url", "paths", "totals"))
            if not isinstance(url, str) or not isinstance(paths, list) or not isinstance(totals, dict):
                raise BadAnswer("it does not say what was exported, and from where")
        except (AttachfsError, OSError, msgspec.DecodeError, RecursionError) as error:
            reason = error.reason if isinstance(error, AttachfsError) else str(error)
            raise UsageError(
                f"{folder.root}: {layout.REPORT} cannot be used ({reason}); only bags that "
                f"'attachfs export' has made have one"
            ) from error
        self.head = Head(url, [path for path in paths if isinstance(path, str)], totals, about)

    def refused(self) -> Iterator[Exported]:
        """Yield what is not in the bag, and why.

        Raises:
            UsageError: the report is damaged.
        """
        return self._entries(_REFUSED, _END)

    def files(self) -> Iterator[Exported]:
        """Yield what is in the bag. Raises as `refused` does."""
        return self._entries(_FILES, _LAST)

    def _entries(self, begin: str, end: str) -> Iterator[Exported]:
        inside = False
        number = 0
        try:
            for line in self._lines():
                number += 1
                if inside and line == end:
                    return
                if inside and line:
                    yield msgspec.json.decode(line.removesuffix(","), type=Exported)
                inside = inside or line == begin
            raise BadAnswer("it ends early")
        except (AttachfsError, OSError, msgspec.DecodeError, RecursionError) as error:
            reason = error.reason if isinstance(error, AttachfsError) else str(error)
            raise UsageError(f"{self._folder.root}: {layout.REPORT}, line {number}: {reason}") from error

    def _lines(self) -> Iterator[str]:
        with os.fdopen(self._folder.open(layout.REPORT), "rb") as file:
            while line := file.readline(_LINE_LIMIT):
                if len(line) == _LINE_LIMIT:
                    raise BadAnswer("a line is longer than it can be")
                yield line.decode("utf-8", "replace").rstrip("\r\n")
