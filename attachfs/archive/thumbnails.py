"""Thumbnails of pictures, as `data:` URIs for a page that stands alone.

A picture is a foreign file for a large decoder: only formats that browsers show as well are decoded, only up
to a size that memory allows, and whatever goes wrong there means no thumbnail.
"""

import base64
import io
import os
import warnings

from attachfs.archive.folder import BagFolder
from attachfs.errors import AttachfsError

_TYPES = {
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/png": "PNG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
}
_FILE_LIMIT = 64 * 2**20  # bytes of a picture
_PIXELS = 12 * 10**6  # decoded, some 48 MB; a JPEG is decoded at an eighth of its size
_JPEG_PIXELS = 200 * 10**6
_EDGE = 128  # pixels of a thumbnail, at most
_QUALITY = 70
_ALL = 24 * 2**20  # characters of all thumbnails on a page


class Thumbnails:
    """The thumbnails of one page; bounded in all.

    Args:
        folder: the bag.
    """

    def __init__(self, folder: BagFolder) -> None:
        self._folder = folder
        self._remaining = _ALL

    def of(self, path: str, mime_type: str, size: int) -> str:
        """Return a picture's thumbnail as a `data:` URI, "" if it is no picture or cannot be shown.

        Args:
            path: the file's, in the bag.
            mime_type: as recorded.
            size: of the file, in bytes.
        """
        kind = _TYPES.get(mime_type.partition(";")[0].strip().lower())
        if kind is None or size > _FILE_LIMIT or self._remaining <= 0:
            return ""
        try:
            with os.fdopen(self._folder.open(path), "rb") as file:
                found = _thumbnail(file, kind)
        except (AttachfsError, OSError):
            return ""
        uri = "data:image/jpeg;base64," + base64.b64encode(found).decode("ascii") if found else ""
        self._remaining -= len(uri)
        return uri if self._remaining > 0 else ""


def _thumbnail(file: io.BufferedReader, kind: str) -> bytes:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=(kind,)) as opened:
                pixels = opened.width * opened.height
                if pixels > (_JPEG_PIXELS if kind == "JPEG" else _PIXELS):
                    return b""
                opened.draft("RGB", (_EDGE, _EDGE))
                if opened.width * opened.height > _PIXELS:
                    return b""
                opened.thumbnail((4 * _EDGE, 4 * _EDGE))
                small = ImageOps.exif_transpose(opened).convert("RGBA")
                small.thumbnail((_EDGE, _EDGE))
                paper = Image.new("RGB", small.size, "white")
                paper.paste(small, mask=small.getchannel("A"))
                written = io.BytesIO()
                paper.save(written, "JPEG", quality=_QUALITY)
                return written.getvalue()
    except Exception:  # noqa: BLE001 - a decoder fed with a foreign file may raise anything
        return b""
