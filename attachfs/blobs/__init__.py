"""A blob from open to close: downloaded, verified, withheld until verified, pinned.

    store      whether an attachment may be opened at all; the way into this package
    handle     one open file: exact reads, from a verified blob or from a download
    prefetched what was fetched ahead, kept open for a moment
    downloads  those under way: who joins which
    download   one of them: its states, and its parts:
               readers (who reads, pauses), receiver (source to disk), read_gate (what may be read by now)
    staged_blob, staging, pins    the bytes on the disk, the room for them, first-seen hashes
    batches, small_blobs    many small ones stored and pinned in one go
    withholding    what was served before verification, and which block is not
    range_reads    what is served out of order: requests (when: range_policy; what came: block_buffer)

Invariants. A byte is served only if it is verified, or if some block of the blob is still served to nobody.
A blob is admitted to the cache only if digest and length are the recorded ones. What is served has been
pinned, or could not be (and a warning said so).

Threads. All state of downloads belongs to the event loop; a download's thread calls back with
`run_sync_soon`. The disk is used in threads: at most 8 at a time look up, reserve, verify and pin; 16 read
for programs; one stores small blobs, and each streamed download has one that hashes and writes.
`StagedBlob` is used by one thread at a time. On the loop nothing waits for a lock but a descriptor's own,
which is held for nanoseconds. `Pins` has two, for threads only: the queue's is taken inside the database's,
never the other way round.
"""
