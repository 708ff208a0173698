"""The client of the ledger's service: HTTP, credentials, and how much is asked at a time.

From the top: `client.py` has the addresses and pages, `blob_stream.py` a blob's bytes and what is taken up
again. Both stand on `transport.py`: one loop that decides what is asked again and with which error it ends,
by what `rate_limit.py`, `concurrency.py`, `circuit_breaker.py` and `refusals.py` say; `watch.py` runs
beside it. Below is the wire: `connections.py` (which way a request goes), `pool.py` (which connection may
be used again), `http1.py` (where an answer ends) and `wire.py` (sockets, TLS). `auth.py` and
`secret_file.py` have the credentials, `proxies.py` reads the environment.

What always holds: an answer is believed only if nothing stands behind it, and only the service's own
answers say that something does not exist or is not allowed. Credentials go to the ledger's own origin and
to nobody else. No message and no exception's text holds a secret. Nothing is waited for without a bound,
and no body is read without one.

All of it runs on the event loop; only secrets' files are read, and names of hosts resolved, in threads. The
one lock is each credential's: it is held during a renewal, and nothing else is waited for meanwhile but the
token endpoint. Slots are taken before credentials are asked for, and given back when the answer's body is
closed. A part of a blob takes one of `client.py`'s few places first, and its slot inside it, so that parts
never take all the slots from whole blobs.
"""
