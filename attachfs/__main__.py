"""The program's entry: `attachfs`, `mount.attachfs` and `python -m attachfs`.

Until the program is loaded, Ctrl-C simply ends it: there is nothing to tell yet.
"""

import signal

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
