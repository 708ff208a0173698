"""A walk over more than fits into memory: the kernel is made to let go, and the walk does not notice."""

import os
import subprocess
import sys
from pathlib import Path

from attachfs.demo.spawn import spawn_server

ASSETS = 600
FEW = (
    f"import attachfs.fuse.kernel_cache as kept; kept._MANY = {ASSETS}; "
    "from attachfs.cli.main import main; main()"
)


def test_find_counts_every_entry_while_inodes_are_let_go(tmp_path: Path) -> None:
    point, log, token = tmp_path / "mnt", tmp_path / "log", tmp_path / "token"
    point.mkdir()
    bulk = ["--bulk", str(ASSETS), "--events", "1", "--attachments", "1", "--token-file", str(token)]
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    with spawn_server(bulk) as server:
        where = [f"--url={server.url}", f"--token-file={token}", f"--cache-dir={tmp_path / 'cache'}"]
        told = [f"--log-file={log}", "--log-level=debug"]
        subprocess.run(
            [sys.executable, "-c", FEW, "mount", *where, *told, str(point)], env=environ, check=True
        )
        try:
            found = subprocess.run(
                ["find", "assets"], cwd=point, capture_output=True, text=True, timeout=60, check=False
            )
        finally:
            subprocess.run([sys.executable, "-m", "attachfs", "umount", str(point)], check=True)
    assert found.stderr == ""
    # Each asset: itself, its attachment, its events, one event, that event's attachment.
    assert len(found.stdout.splitlines()) == 1 + 5 * ASSETS
    assert log.read_text().count("are left") >= 2
