"""A bag's manifests and declaration, read strictly.

A manifest's line is a digest, spaces, and a path below the bag. What could be meant in two ways is refused:
a path that leads out, one that comes twice, a digest of another length.
"""

import os
import re
from collections.abc import Iterator

from attachfs.archive import layout
from attachfs.archive.folder import BagFolder
from attachfs.errors import BadAnswer, NotFound, UsageError

_LINE_LIMIT = 16_384  # bytes; a path has 4,096 at most, three times as many where all of it is escaped
_LINE = re.compile(r"([0-9A-Fa-f]{64})[ \t]+\*?(.+)")
_TAG_LIMIT = 2**20  # bytes of bagit.txt and bag-info.txt


def check_declaration(folder: BagFolder) -> None:
    """Make sure that the directory says it is a bag that can be read here.

    Raises:
        UsageError: it is none, or of another version or encoding.
    """
    try:
        text = folder.read(layout.DECLARATION, _TAG_LIMIT).decode("utf-8")
    except NotFound:
        unfinished = any(name == layout.WORK for name, _ in folder.names(""))
        hint = "its export has not ended; run it again" if unfinished else "it has no bagit.txt"
        raise UsageError(f"{folder.root} is not a bag: {hint}") from None
    except (BadAnswer, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder.root} is not a bag: bagit.txt cannot be read ({error})") from error
    found = re.fullmatch(
        r"BagIt-Version: (0\.9[67]|1\.0)\r?\nTag-File-Character-Encoding: UTF-8(?:\r?\n)*", text
    )
    if found is None:
        raise UsageError(f"{folder.root}: bagit.txt does not declare BagIt 0.96 to 1.0 with UTF-8")


def entries(folder: BagFolder, name: str) -> Iterator[tuple[str, str]]:
    """Yield the paths and SHA-256 values (lower case) that a manifest lists.

    Raises:
        NotFound: the manifest is not there.
        BadAnswer: it cannot be read as one; the message names the line.
        OSError: the disk failed.
    """
    met: set[str] = set()
    with os.fdopen(folder.open(name), "rb") as file:
        number = 0
        while line := file.readline(_LINE_LIMIT):
            number += 1
            where = f"{name}, line {number}"
            if len(line) == _LINE_LIMIT:
                raise BadAnswer(f"{where}: longer than a line can be")
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise BadAnswer(f"{where}: not UTF-8") from None
            if not text.strip():
                continue
            found = _LINE.fullmatch(text)
            if found is None:
                raise BadAnswer(f"{where}: not a SHA-256 value and a path")
            path = layout.decode_name(found[2]).removeprefix("./")
            if not layout.is_inside(path):
                raise BadAnswer(f"{where}: {path!a} leads out of the bag")
            if path in met:
                raise BadAnswer(f"{where}: {path!a} is listed twice")
            met.add(path)
            yield path, found[1].lower()
