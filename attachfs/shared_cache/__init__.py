"""A blob cache that a fleet shares: an HTTP server that takes GET, HEAD and PUT, or an S3-compatible store.

Owns: how such a store is spoken to (`objects`, `http_address`, `s3_address`), when it is asked at all
(`policy`, `breaker`), how its bytes get in front of the service's (`source`) and into it (`uploads`).

Never trusted: digest, length, scan policy and permission come from the service with the user's own
credentials; the store only saves where the bytes come from. What it sends is hashed before the download may
end, and again where it is admitted. Wrong, short, slow or refused is a counted miss, and the service is
asked.

Invariants: nothing of the ledger's credentials goes to the store; no error of the store reaches a reader; a
store that fails is left alone for a while. No locks but one, around the renewal of AWS credentials: all
state is the event loop's. Disk reads for uploads and credential_process run in worker threads.
"""
