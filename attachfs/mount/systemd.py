"""What a service manager is told: sd_notify(3), over the socket in $NOTIFY_SOCKET."""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager how the mount is; tells nobody where there is none.

    Args:
        environ: where the socket's address is.
        clock: microseconds, monotonic.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
    ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._status = ""

    @property
    def listening(self) -> bool:
        """Whether somebody wants to know."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Tell that the mount answers, or that it has read its configuration again."""
        self._status = status
        self._send(f"READY=1\nSTATUS={_line(status)}\nMAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        """Tell how it is, unless that is what was told last."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """Tell that the configuration is being read again; `ready` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._clock()}")

    def stopping(self, status: str) -> None:
        """Tell that the mount is being taken down."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
                client.connect(self._address)
                client.sendall(message.encode("utf-8", "replace"))
        except OSError as error:
            log.debug("the service manager could not be notified: %s", error)


def _line(text: str) -> str:
    return " ".join(text.split())
