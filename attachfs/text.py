"""Foreign text made fit to look at: for terminals, log lines, messages and reports.

Owns: which characters are shown as they are. Names, values and messages come from the ledger, a server,
a file system or another process, and so from anybody who may write there. None of them may begin a line of
its own, move a cursor, change a terminal's state or show text in another order than it has.
"""

EXCERPT = 200  # characters of foreign text in a message


def printable(value: object) -> str:
    r"""Return the text of `value`, with escapes for all that is not plainly visible: `\x1b`, `\n`, `\u202e`.

    That is Unicode's controls, format characters (the bidirectional ones among them), separators other than
    the space, surrogates, and what is not assigned. Bytes of a file's name that are not UTF-8, as Python
    carries them, become `\xff`. Printable text is returned as it is: doing this twice changes nothing.
    """
    text = str(value)
    return text if text.isprintable() else "".join(map(_visible, text))


def excerpt(value: object, limit: int = EXCERPT) -> str:
    """Return the text of `value` for a message: one printable line, cut at `limit` characters."""
    # Escapes only make text longer: what is behind the limit need not be looked at, however much it is.
    text = str(value)[: limit + 1]
    shown = printable(text)
    return shown if len(shown) <= limit else shown[:limit] + "…"


def _visible(one: str) -> str:
    if one.isprintable():
        return one
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # the surrogate that stands for a byte that is not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return one.encode("unicode_escape").decode("ascii")
