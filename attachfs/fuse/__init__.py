"""The kernel's side: FUSE requests as calls to namespace and blobs.

The one place where an exception becomes an errno.
"""
