"""What a mount's process needs of its surroundings before it mounts: descriptors, and enough of them."""

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

_STANDARD = 3  # descriptors: 0, 1 and 2


def prepare() -> None:
    """Make the process fit to mount. Called before anything is opened."""
    fill_standard_descriptors()
    raise_file_limit()


def fill_standard_descriptors() -> None:
    """Open /dev/null in the place of standard descriptors that are closed.

    Else the next thing to be opened (a pipe, /dev/fuse, the cache) would be taken for standard output.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if descriptor >= _STANDARD:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def raise_file_limit() -> None:
    """Allow as many open files as the hard limit does: each file that a program has open takes one here.

    The soft limit is low for the sake of programs that use select(2), which this one does only at its start.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # the kernel's own bound is lower
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Descriptors(TypedDict, total=False):
    """How many descriptors are open, and how many may be."""

    open: int
    limit: int


def descriptors() -> Descriptors:
    """Return how many descriptors are open, and how many may be."""
    return {
        "open": sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1,  # one of them is the listing's own
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
