"""Evidence taken home: BagIt bags (RFC 8493), written, checked, and mounted without any service.

Owns: what stands where in a bag (`layout.py`), the state of an export that may be killed at any moment
(`journal.py`), the tag files and reports (`writer.py`, `report.py`, `html.py`), reading a bag that anybody
may have made (`folder.py`, `manifest.py`, `check.py`), and a bag as the source of records and bytes for a
mount (`source.py`, `blobs.py`).

Invariants: a payload file gets its name only after its bytes have matched the ledger's hash; `bagit.txt` is
written last, so what is not whole is not a bag yet. A bag is foreign: nothing in it is followed out of it,
opened as anything but a regular file, or read without a limit; its bytes are believed only after they were
hashed.

Threads: `journal.py` and `writer.py` belong to the command's main thread; `blobs.py` is called in worker
threads and has one lock, held for look-ups in its table and never while a file is hashed.
"""
