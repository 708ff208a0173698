"""Who may mount, and who may read: root, an ordinary user through fusermount3, and everybody else."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import attachfs
from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import run_mount

NOBODY = 65534
# Capabilities are dropped as well: a container's may be ambient, and outlive the change of user.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
AS_NOBODY += ["--ambient-caps=-all"]
# setpriv itself keeps what it had until it executes: env(1) is the first to be nobody.


def interpreter_for_others() -> str | None:
    """Return a Python of this very version that an ordinary user may execute."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (
        os.path.realpath(sys.executable),
        shutil.which(version, path="/usr/bin:/usr/local/bin"),
    ):
        if candidate is None:
            continue
        tried = subprocess.run(
            [*AS_NOBODY, "env", candidate, "-c", "import ssl"], capture_output=True, check=False
        )
        if tried.returncode == 0:
            return candidate
    return None


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """Return a directory of the ordinary user's, outside pytest's private one."""
    with tempfile.TemporaryDirectory(prefix="attachfs-user-") as name:
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_an_ordinary_user_mounts_reads_and_unmounts_and_even_root_stays_outside(
    ledger: DemoServer, open_dir: Path
) -> None:
    python = interpreter_for_others()
    if python is None:
        pytest.skip("no interpreter of this version that an ordinary user may execute")
    assert ledger.token_file is not None
    token = open_dir / "token"
    token.write_text(ledger.token_file.read_text())
    token.chmod(0o600)
    os.chown(token, NOBODY, NOBODY)
    node = open_dir / "fuse"
    os.mknod(node, 0o666 | 0o020000, os.makedev(10, 229))
    node.chmod(0o666)
    packages = [str(Path(attachfs.__file__).parents[1]), *(p for p in sys.path if p.endswith("-packages"))]
    # Bound to where the user may go: the clone may be in root's own directory.
    bound = {package: open_dir / f"packages-{number}" for number, package in enumerate(packages)}
    bind = "\n".join(f"mkdir {to}; mount --bind {shlex.quote(package)} {to}" for package, to in bound.items())
    # In a mount namespace of its own, so that /dev/fuse can have its usual mode whatever the machine's is.
    script = f"""
        set -eu
        mount --bind {node} /dev/fuse
        {bind}
        as_user() {{
            {" ".join(AS_NOBODY)} \
                env HOME={open_dir} XDG_CACHE_HOME={open_dir}/c XDG_STATE_HOME={open_dir}/s \
                PYTHONPATH={":".join(map(str, bound.values()))} "$@"
        }}
        as_user mkdir {open_dir}/mnt
        as_user {python} -m attachfs mount --url={ledger.url} --token-file={token} {open_dir}/mnt
        as_user ls {open_dir}/mnt
        file=$(as_user find {open_dir}/mnt/assets -name '*-*' -type f 2>/dev/null | head -1)
        as_user sha256sum "$file" | cut -d' ' -f1
        as_user getfattr --only-values --absolute-names -n user.hash.sha256 "$file"; echo
        as_user stat -c '%u %g %a' "$file"
        ls {open_dir}/mnt 2>/dev/null && echo root came in
        as_user {python} -m attachfs umount {open_dir}/mnt
        as_user ls -A {open_dir}/mnt
        echo done
    """
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[:3] == ["assets", "by-name", "publicassets"]
    assert lines[3] == lines[4] != ""
    assert lines[5] == f"{NOBODY} {NOBODY} 444"
    assert lines[6:] == ["done", ""]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize(
    ("options", "may"),
    [
        ([], False),
        (["--allow-other"], True),
        (["--allow-other", "--umask=077"], False),
        (["--allow-other", "--umask=077", f"--uid={NOBODY}"], True),
        (["-o", f"allow_other,umask=027,gid={NOBODY}"], True),
    ],
)
def test_another_user_reads_only_what_the_options_allow(
    ledger: DemoServer, open_dir: Path, options: list[str], *, may: bool
) -> None:
    open_dir.chmod(0o755)
    with run_mount(open_dir, *options, server=ledger) as mounted:
        tried = subprocess.run(
            [*AS_NOBODY, "env", "ls", mounted.point], capture_output=True, text=True, check=False
        )
        assert (tried.returncode == 0) == may, tried.stderr
