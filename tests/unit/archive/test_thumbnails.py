"""Thumbnails of pictures that anybody may have made."""

import base64
import io
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from attachfs.archive import thumbnails
from attachfs.archive.folder import BagFolder
from attachfs.archive.thumbnails import Thumbnails


def picture(kind: str, size: tuple[int, int] = (400, 200), mode: str = "RGB") -> bytes:
    written = io.BytesIO()
    Image.new(mode, size, "red").save(written, kind)
    return written.getvalue()


def png_of(width: int, height: int) -> bytes:
    """Return a small file that says it is a huge picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return tmp_path


def shown(bag: Path, data: bytes, mime_type: str) -> str:
    (bag / "file").write_bytes(data)
    with BagFolder(bag) as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        return Thumbnails(folder).of("file", mime_type, len(data))


@pytest.mark.parametrize(
    ("kind", "mime_type", "mode"),
    [
        ("JPEG", "image/jpeg", "RGB"),
        ("JPEG", "image/jpeg", "CMYK"),
        ("PNG", "image/png", "RGBA"),
        ("PNG", "image/png; charset=x", "P"),
        ("GIF", "image/gif", "P"),
        ("WEBP", "image/webp", "RGBA"),
    ],
)
def test_a_picture_is_shown_small(bag: Path, kind: str, mime_type: str, mode: str) -> None:
    uri = shown(bag, picture(kind, mode=mode), mime_type)
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (128, 64)


@pytest.mark.parametrize(
    ("data", "mime_type"),
    [
        (b"", "image/jpeg"),
        (b"\xff\xd8\xff" + b"\0" * 100, "image/jpeg"),
        (picture("PNG"), "image/jpeg"),  # another decoder than the record says is not asked
        (picture("TIFF"), "image/tiff"),
        (picture("PNG")[:60], "image/png"),
        (png_of(60_000, 60_000), "image/png"),
        (png_of(2**31 - 1, 2**31 - 1), "image/png"),
        (b"<svg onload='alert(1)'/>", "image/svg+xml"),
        (picture("PNG"), "application/pdf"),
    ],
)
def test_what_cannot_be_shown_safely_is_not_shown(bag: Path, data: bytes, mime_type: str) -> None:
    assert shown(bag, data, mime_type) == ""


def test_links_are_not_followed(bag: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(picture("PNG"))
    (bag / "file").symlink_to(tmp_path / "outside")
    with BagFolder(bag) as folder:
        assert Thumbnails(folder).of("file", "image/png", 1) == ""


def test_a_page_of_thousands_is_bounded(bag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bag / "file").write_bytes(picture("PNG"))
    with BagFolder(bag) as folder:
        one = len(Thumbnails(folder).of("file", "image/png", 1))
        monkeypatch.setattr(thumbnails, "_ALL", 3 * one)
        pictures = Thumbnails(folder)
        found = [pictures.of("file", "image/png", 1) for _ in range(10)]
    assert sum(map(len, found)) <= 3 * one
    assert found[0]
    assert not found[-1]
