"""`report.html`: the report as one page that stands alone and prints well.

Everything foreign is escaped, for HTML and for the eye: what could move, hide or reorder text is shown as its
code. The page may load nothing and run nothing, and says so itself.
"""

import html
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from attachfs.archive.entries import Exported
from attachfs.text import printable
from attachfs.units import format_size

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Export of evidence</title>
<style>
@page { size: A4 landscape; margin: 12mm; }
* { box-sizing: border-box; }
body { font: 14px/1.45 system-ui, sans-serif; color: #1b1f24; max-width: 1240px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.6em; margin: 0 0 .2em; }
h2 { font-size: 1.15em; margin: 1.8em 0 .5em; border-bottom: 2px solid #1b1f24; padding-bottom: .2em; }
p.lead { margin: 0 0 1em; color: #57606a; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1.2em; margin: 0; }
dt { color: #57606a; }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
thead { display: table-header-group; }
th { text-align: left; font-weight: 600; color: #57606a; border-bottom: 1px solid #1b1f24; }
th, td { padding: .35em .7em .35em 0; vertical-align: top; }
td { border-bottom: 1px solid #d0d7de; }
tr { break-inside: avoid; }
tr.asset td { background: #f3f5f7; padding: .5em .7em; break-after: avoid; }
td.picture { width: 84px; }
td.picture img { max-width: 76px; max-height: 76px; border: 1px solid #d0d7de; display: block; }
th.what { width: 40%; }
th.hash { width: 30%; }
td.size { white-space: nowrap; text-align: right; }
.name { font-weight: 600; overflow-wrap: anywhere; }
.small { color: #57606a; font-size: .85em; overflow-wrap: anywhere; }
code { font: .8em/1.35 ui-monospace, monospace; overflow-wrap: anywhere; }
.good { color: #116329; }
.bad { color: #a40e26; font-weight: 600; }
.box { border: 1px solid #d0d7de; border-left: 5px solid #116329; padding: .7em 1em; margin: 1em 0; }
.box.some { border-left-color: #a40e26; }
@media print {
  body { font-size: 9.5pt; max-width: none; margin: 0; padding: 0; }
  tr.asset td { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
</style>
</head>
<body>
"""
_SCAN = {
    "SCANNED_OK": ("good", "clean"),
    "SCANNED_BAD": ("bad", "found bad"),
    "NOT_SCANNED": ("", "not scanned"),
}
_PROOF = {
    "": ("", "no"),
    "proven": ("good", "proven"),
    "key not given": ("", "key not given"),
    **{
        state: ("bad", state)
        for state in ("leaf differs", "path differs", "seal bad", "log rewritten", "hash differs")
    },
}
_ATTESTED = {"match": ("good", "yes"), "mismatch": ("bad", "differs"), "unavailable": ("", "not recorded")}


def write(
    file: TextIO,
    facts: Iterable[tuple[str, str]],
    totals: dict[str, Any],
    refused: Iterable[Exported],
    files: Iterable[Exported],
    thumbnail: Callable[[Exported], str],
) -> None:
    """Write the page.

    Args:
        file: where to.
        facts: who, when, from where: names and values.
        totals: `files`, `bytes` and `refused`.
        refused: what is not in the bag, and why.
        files: what is, by path.
        thumbnail: returns a `data:` URI, or "".
    """
    file.write(_HEAD)
    file.write("<h1>Export of evidence</h1>\n")
    file.write(
        '<p class="lead">Attachments of an evidence ledger, with the records that vouch for them.</p>\n'
    )
    count, size, bad = totals["files"], totals["bytes"], totals["refused"]
    verdict = "Nothing was refused."
    if bad:
        verdict = f'<span class="bad">{bad:,} refused</span>, listed below.'
    file.write(
        f'<div class="box{" some" if bad else ""}"><b>{count:,} file{"" if count == 1 else "s"}, '
        f"{format_size(size)}</b>: the bytes of each were compared with the hash that the ledger records, "
        f"and with the one in its owner's attributes where there is one. {verdict}</div>\n<dl>\n"
    )
    file.writelines(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>\n" for name, value in facts)
    file.write("</dl>\n")
    if bad:
        file.write(
            '<h2>Refused: not in this export</h2>\n<table><thead><tr><th class="what">What</th><th>Error</th>'
        )
        file.write("<th>Why</th></tr></thead><tbody>\n")
        file.writelines(map(_refused_row, refused))
        file.write("</tbody></table>\n")
    _write_files(file, files, thumbnail)
    file.write(
        "<h2>How to check this without attachfs</h2>\n<p>In the directory of this page: "
        "<code>sha256sum -c manifest-sha256.txt</code> compares every file with its hash, "
        "<code>bagit.py --validate .</code> (Library of Congress) also this page and the records; the "
        "recorded hash stands in <code>records/…/&lt;attachment&gt;.info.json</code>.</p>\n</body>\n</html>\n"
    )


def _refused_row(entry: Exported) -> str:
    where = " · ".join(filter(None, (entry.asset, entry.event)))
    return (
        f'<tr><td><div class="name">{safe(entry.name or "(a listing or record)")}</div>'
        f'<div class="small">{safe(where)}</div><code>{safe(entry.path)}</code></td>'
        f'<td class="bad">{safe(entry.errno)}</td><td>{safe(entry.reason)}</td></tr>\n'
    )


def _write_files(file: TextIO, files: Iterable[Exported], thumbnail: Callable[[Exported], str]) -> None:
    file.write(
        "<h2>Files</h2>\n<table><thead><tr><th></th><th>File</th><th>Size</th>"
        '<th class="hash">Recorded hash</th>'
        "<th>Accepted (UTC)</th><th>Scan</th><th>Attested</th><th>In the log</th></tr></thead><tbody>\n"
    )
    asset = ""
    for entry in files:
        owner = "/".join(entry.path.split("/")[:2])
        if owner != asset:
            asset = owner
            name = safe(entry.asset or "(no name)")
            file.write(f'<tr class="asset"><td colspan="8"><span class="name">{name}</span> ')
            file.write(f"<code>{safe(owner)}</code></td></tr>\n")
        file.write(_file_row(entry, thumbnail(entry)))
    file.write("</tbody></table>\n")


def _file_row(entry: Exported, picture: str) -> str:
    image = f'<img src="{html.escape(picture)}" alt="">' if picture else ""
    event = f'<div class="small">{safe(entry.event)}</div>' if entry.event else ""
    return (
        f'<tr><td class="picture">{image}</td><td><div class="name">{safe(entry.name)}</div>{event}'
        f'<div class="small">{safe(entry.mime_type)}</div>'
        f"<code>{safe(entry.path.rpartition('/')[2])}</code></td>"
        f'<td class="size">{format_size(entry.size)}</td>'
        f"<td><code>{safe(entry.alg)} {safe(entry.hex)}</code></td><td>{safe(time_of(entry.accepted))}</td>"
        f"{_cell(_SCAN, entry.scan)}{_cell(_ATTESTED, entry.attested)}"
        f"{_cell(_PROOF, entry.proof)}</tr>\n"
    )


def _cell(words: dict[str, tuple[str, str]], value: str) -> str:
    kind, text = words.get(value, ("", value))
    return f'<td class="{kind}">{safe(text)}</td>'


def time_of(text: str) -> str:
    """Return an RFC 3339 time in UTC for people."""
    return text.replace("T", " ").removesuffix("Z")


def safe(text: object) -> str:
    """Return foreign text for a page: escaped, and with what is not plainly visible as its code."""
    return html.escape(printable(text))
