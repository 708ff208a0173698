"""The demo ledger: a stand-in for the service, and made-up data for it.

| module | what lives there |
|---|---|
| `records.py` | shapes that every ledger answers with, and the interface `Ledger` |
| `query.py` | filters of listings, page tokens |
| `store.py` | `Store`: a ledger in memory, its blobs on disk |
| `bulk.py` | a ledger of any size, computed from an index |
| `sniff.py` | MIME types from the first bytes |
| `app.py`, `downloads.py`, `tokens.py` | the ASGI application, its byte streams, its bearer tokens |
| `transparency_log.py` | the logs to which events are committed, and their seals |
| `requestlog.py` | counts of requests, for tests and the tour |
| `story.py`, `story_*.py`, `writer.py`, `pdf.py` | believable data |
| `server.py`, `spawn.py` | a process that serves, and how to start one |

Owns: what the stand-in answers, to the byte. The program never depends on it: only `attachfs demo` and the
tests start it, as a process of its own. Its data is made anew at each start.

One event loop runs all of it; new blobs are stored, and large ones read, in worker threads. There are no
locks: all but adding a blob belongs to the loop.
"""
