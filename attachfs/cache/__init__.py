"""Verified blobs on disk by their digest, and the quarantine of those that did not match.

    disk_cache   what the cache offers; everything else here is private to it, but for these:
    descriptor   open blobs, shared by their readers        files      what is done with single files
    quarantine   what did not match                         warn_once  warnings, each once

Owns: that a blob's name is its digest and that it has the name only with all of its bytes on the disk; that
a blob whose file was written to since is hashed again before it is served; the bound.

Locks, outermost first; whoever holds one may take those below it, never one above:

    1. `Indexer._scanning`     one walk over the directory at a time; held while it is listed
    2. `File.hashing`          one thread finds out whether a blob is right; held while it is hashed
    3. `CacheSpace.lock`       the index and the counts; held for lookups, renames and removals, never while
                               data is read, written, hashed or synced
    4. `CacheDir._number`, `CacheSpace._unsynced_lock`, `Quarantine._lock`, `Writer._ending`,
       `Descriptor._lock`, `Closer`'s, `WarnOnce`'s:
                               each guards a few fields of its own object; no lock is taken inside one

Threads. Everything may take long and is called in worker threads, but for `pread_nowait`, `close_soon`,
`abort_soon`, `unchanged`, `may_fit` and `stats`, which never wait for lock or disk and are for the event
loop. What they leave to be done, the closer's thread does.
"""
