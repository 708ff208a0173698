"""What the service manager is told, over a socket of the test's own."""

import os
import socket
from pathlib import Path

import pytest

from attachfs.mount.systemd import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_sent_its_messages_without_injection(
    tmp_path: Path, *, abstract: bool
) -> None:
    name = f"@attachfs-unit-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": name}, clock=lambda: 42)
        assert notifier.listening
        notifier.ready("a\nREADY=0")
        assert manager.recv(999) == f"READY=1\nSTATUS=a READY=0\nMAINPID={os.getpid()}".encode()
        notifier.status("a\nREADY=0")  # told already
        notifier.status("b")
        assert manager.recv(999) == b"STATUS=b"
        notifier.reloading()
        assert manager.recv(999) == b"RELOADING=1\nMONOTONIC_USEC=42"
        notifier.stopping("done")
        assert manager.recv(999) == b"STOPPING=1\nSTATUS=done"


def test_without_a_service_manager_nothing_is_sent() -> None:
    notifier = Notifier({})
    assert not notifier.listening
    notifier.ready("x")


def test_a_service_manager_that_has_gone_is_ignored(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("x")
