"""A writer of small PDF files: a page of A4, text, tables, one JPEG. The same input gives the same bytes."""

import textwrap
from collections.abc import Iterable, Sequence

_WIDTH, _HEIGHT, _MARGIN = 595, 842, 56  # points
_LINE = 14
_WRAP = 92  # characters of 10-point Helvetica that surely fit a line
_REGULAR, _BOLD = "F1", "F2"


class Pdf:
    """One page, filled from the top.

    Args:
        title: of the document; also its first line.
        created: `YYYYMMDDHHMMSS`, as the document's date.
    """

    def __init__(self, title: str, created: str) -> None:
        self._title = title
        self._created = created
        self._content: list[str] = []
        self._picture: tuple[bytes, int, int] | None = None
        self._y = _HEIGHT - _MARGIN
        self._put(title, 18, _BOLD)
        self._y -= 10
        self.rule()

    def heading(self, text: str) -> None:
        """Add a heading."""
        self._y -= 6
        self._put(text, 12, _BOLD)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        for line in textwrap.wrap(text, _WRAP):
            self._put(line, 10, _REGULAR)
        self._y -= 4

    def table(self, rows: Iterable[Sequence[str]], columns: Sequence[int]) -> None:
        """Add a table, its first row in bold; `columns` are distances from the margin, in points."""
        for number, row in enumerate(rows):
            self._y -= _LINE
            for distance, cell in zip(columns, row, strict=True):
                self._show(cell, _MARGIN + distance, 9, _REGULAR if number else _BOLD)
        self._y -= 6
        self.rule()

    def rule(self) -> None:
        """Add a line across the page."""
        self._y -= 4
        self._content.append(f"0.6 w {_MARGIN} {self._y} m {_WIDTH - _MARGIN} {self._y} l S")
        self._y -= 4

    def picture(self, jpeg: bytes, width: int, height: int) -> None:
        """Add the page's one picture, of that many pixels, as wide as half the page."""
        shown = (_WIDTH - 2 * _MARGIN) * 0.6
        tall = shown * height / width
        self._y -= int(tall) + 10
        self._content.append(f"q {shown:.1f} 0 0 {tall:.1f} {_MARGIN} {self._y} cm /Im1 Do Q")
        self._picture = (jpeg, width, height)

    def finish(self) -> bytes:
        """Return the file."""
        title = _escape(self._title.encode("ascii", "replace").decode())
        content = "\n".join(self._content).encode("cp1252", "replace")
        fonts = "/F1 4 0 R /F2 5 0 R"
        image = "/XObject << /Im1 8 0 R >>" if self._picture else ""
        font = "<< /Type /Font /Subtype /Type1 /BaseFont /{} /Encoding /WinAnsiEncoding >>"
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            (
                f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {_WIDTH} {_HEIGHT}] /Contents 6 0 R "
                f"/Resources << /Font << {fonts} >> {image} >> >>"
            ).encode(),
            font.format("Helvetica").encode(),
            font.format("Helvetica-Bold").encode(),
            _stream("", content),
            f"<< /Title ({title}) /Producer (attachfs demo) /CreationDate (D:{self._created}Z) >>".encode(),
        ]
        if self._picture:
            jpeg, width, height = self._picture
            what = f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB"
            objects.append(_stream(f"{what} /BitsPerComponent 8 /Filter /DCTDecode ", jpeg))
        return _assemble(objects)

    def _put(self, text: str, size: int, font: str) -> None:
        self._y -= max(_LINE, size + 4)
        self._show(text, _MARGIN, size, font)

    def _show(self, text: str, x: int, size: int, font: str) -> None:
        self._content.append(f"BT /{font} {size} Tf {x} {self._y} Td ({_escape(text)}) Tj ET")


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _stream(entries: str, data: bytes) -> bytes:
    return f"<< {entries}/Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"


def _assemble(objects: Sequence[bytes]) -> bytes:
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        out += b"%010d 00000 n \n" % offset
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info 7 0 R >>\n" % (len(objects) + 1)
    out += b"startxref\n%d\n%%%%EOF\n" % table
    return bytes(out)
