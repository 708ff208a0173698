"""The program's entry: `attachfs`, `mount.attachfs` and `python -m attachfs`.

Until the program is loaded, Ctrl-C simply ends it: there is nothing to tell yet.
"""

import signal
import sys

# httpx brings a command line of its own, and imports rich and pygments for it wherever they are installed: a
# quarter of the time until a mount answers. Without that module it does without.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

_INTERRUPTED = signal.getsignal(signal.SIGINT)  # ignored, below nohup
if _INTERRUPTED is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Be `attachfs`."""
    from attachfs.cli import main as program

    signal.signal(signal.SIGINT, _INTERRUPTED)
    program.main()


def mount_helper() -> None:
    """Be mount(8)'s helper."""
    from attachfs.cli import main as program

    signal.signal(signal.SIGINT, _INTERRUPTED)
    program.mount_helper()


if __name__ == "__main__":
    main()
