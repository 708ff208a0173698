"""MIME types guessed from the first bytes, as the service does on upload. Nothing else."""

HEAD = 3072  # bytes that are looked at

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF8", "image/gif"),
    (0, b"%PDF-", "application/pdf"),
    (8, b"AVI LIST", "video/x-msvideo"),
    (4, b"ftyp", "video/mp4"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (0, b"<?xml", "text/xml"),
)

_OPENXML = "application/vnd.openxmlformats-officedocument"
_OFFICE = (
    (b"word/", f"{_OPENXML}.wordprocessingml.document"),
    (b"xl/", f"{_OPENXML}.spreadsheetml.sheet"),
    (b"ppt/", f"{_OPENXML}.presentationml.presentation"),
)


def sniff(head: bytes) -> str:
    """Return the MIME type of content that begins with `head` (the first `HEAD` bytes of it)."""
    if head.startswith(b"PK\x03\x04") and b"[Content_Types].xml" in head:
        for folder, mime_type in _OFFICE:
            if folder in head:
                return mime_type
    for offset, magic, mime_type in _MAGIC:
        if head.startswith(magic, offset):
            return mime_type
    if head and not any(byte < 0x20 and byte not in b"\t\n\r\f\x1b" for byte in head) and _utf8(head):
        return "application/json" if head.lstrip()[:1] in (b"{", b"[") else "text/plain"
    return "application/octet-stream"


def _utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.end == len(head) == HEAD and error.reason == "unexpected end of data"
    return True
