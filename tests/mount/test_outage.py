"""Without a network: what was seen is told, what is cached is read, and nothing is said not to exist."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from attachfs.demo.spawn import spawn_server
from tests.mount.conftest import run_mount
from tests.mount.oracle import directories_and_files
from tests.services.threaded_ledger import identity


def errno_of(path: Path) -> int:
    """Return the errno with which reading a path fails."""
    with pytest.raises(OSError, match="Errno") as caught:
        path.read_bytes()
    assert caught.value.errno is not None
    return caught.value.errno


def test_an_offline_mount_shows_what_was_seen_and_reads_what_is_cached(tmp_path: Path) -> None:
    with spawn_server(["--token-file", str(tmp_path / "token")]) as server:
        _, files = directories_and_files(server)
        good = sorted(path for path, one in files.items() if one.good)
        with run_mount(tmp_path, server=server) as mounted:
            listed = mounted.sh("find assets | sort; ls -lR assets", check=False).stdout
            content = (mounted.point / good[0]).read_bytes()
        url, token = server.url, server.token_file
    # The ledger has gone. The very same tree, with sizes and attributes, is there.
    with run_mount(tmp_path, "--offline", f"--url={url}", f"--token-file={token}") as mounted:
        assert mounted.sh("find assets | sort; ls -lR assets", check=False).stdout == listed
        assert (mounted.point / good[0]).read_bytes() == content
        assert (
            os.getxattr(mounted.point / good[0], "user.hash.sha256").decode()
            == hashlib.sha256(content).hexdigest()
        )
        other = next(path for path in good if files[path].sent_sha256 != files[good[0]].sent_sha256)
        assert errno_of(mounted.point / other) == errno.EHOSTUNREACH
        assert errno_of(mounted.point / "assets" / identity("never seen")) == errno.EHOSTUNREACH
        told = subprocess.run(
            [sys.executable, "-m", "attachfs", "status", str(mounted.point)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "offline; no requests are made" in told
        assert "kept for --offline" in told
        status = mounted.status()
        assert status["offline"] is True
        assert status["memory"]["answers"] > 0
        assert status["memory"]["oldest_s"] >= status["memory"]["newest_s"] >= 0


def test_while_the_ledger_is_down_known_names_and_verified_blobs_are_served_and_it_is_said_once(
    tmp_path: Path,
) -> None:
    with ExitStack() as mount:
        arguments = ["--token-file", str(tmp_path / "token")]
        with spawn_server(arguments) as server:
            good = sorted(path for path, one in directories_and_files(server)[1].items() if one.good)
            owner = str(Path(good[0]).parent)
            port = str(urlsplit(server.url).port)
            options = ["--metadata-ttl=0", "--negative-ttl=0", "--timeout=5"]
            mounted = mount.enter_context(run_mount(tmp_path, *options, server=server))
            before = mounted.sh(f"ls -l assets {owner}; sha256sum {good[0]}").stdout
        shown = mounted.sh(f"ls -l assets {owner}; sha256sum {good[0]}")
        assert shown.stdout == before
        unseen = next(path for path in good if str(Path(path).parent) != owner)
        assert errno_of(mounted.point / unseen) == errno.EHOSTUNREACH
        assert errno_of(mounted.point / "assets" / identity("elsewhere")) == errno.EHOSTUNREACH
        assert mounted.status()["stale"] is True
        with spawn_server([*arguments, "--port", port]):
            # The circuit lets a probe through within seconds; the token is another one, too.
            deadline = time.monotonic() + 30
            while mounted.sh("ls assets/*/events", check=False).returncode and time.monotonic() < deadline:
                pass
            assert (mounted.point / unseen).read_bytes()
            assert mounted.status()["stale"] is False
    assert len([line for line in mounted.log if "serving stale metadata" in line]) >= 1
    assert len([line for line in mounted.log if "answers again" in line]) >= 1
