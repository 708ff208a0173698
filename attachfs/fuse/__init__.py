"""The kernel's side: FUSE requests as calls to namespace and blobs.

Owns: the errno that a program sees (guard.py), inodes and handles, what the kernel is told to remember or
forget, how long a request may wait, and what is fetched before it is asked for.

What always holds: no exception but a FUSEError leaves a handler; a read gives exactly the bytes asked for,
or an error; an inode lives as long as the kernel counts lookups of it; whoever waits can be killed.

Everything runs in the event loop's thread, so there are no locks. A handler that finds its answer in memory
awaits nothing, and its whole answer is one step. Two things run in worker threads: what makes the kernel
forget (the kernel may ask us something first, which the loop has to answer), and the sorting of large
directories.
"""
