"""mount(8) and umount(8) themselves, with fstab lines, in a mount namespace of the test's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attachfs
from attachfs.demo.spawn import DemoServer
from attachfs.namespace.nodes import Place

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root for a mount namespace")

# Gives mount(8) its helper without touching the system: /sbin becomes links to what was in it, and more.
PREPARE = """
set -eu
sbin=$(readlink -f /sbin)
mkdir -p {base}/sbin
mount --bind "$sbin" {base}/sbin
mount -t tmpfs tmpfs "$sbin"
ln -s {base}/sbin/* "$sbin"/
{links}
printf '#!/bin/sh\\nexec {python} -c "import attachfs.cli.main as c; c.mount_helper()" "$@"\\n' \\
    >{base}/mount.attachfs
printf '#!/bin/sh\\nexec {python} -m attachfs "$@"\\n' >{base}/attachfs
chmod 755 {base}/mount.attachfs {base}/attachfs
export PATH={base}:$PATH PYTHONPATH={package} HOME={base} XDG_CACHE_HOME={base}/c XDG_STATE_HOME={base}/s
export XDG_CONFIG_HOME={base}/config
cd {base}
mkdir mnt
"""
FORGET = 'rm -f "$sbin"/mount.attachfs "$sbin"/mount.fuse.attachfs "$sbin"/attachfs\n'
HELPER = 'for name in mount.attachfs mount.fuse.attachfs; do ln -s {base}/mount.attachfs "$sbin/$name"; done'
PROGRAM = 'ln -s {base}/attachfs "$sbin"/attachfs'
TOP = sorted(place.value for place in Place if place.value)


class Shell:
    """Runs scripts after `PREPARE`, each in a namespace of its own."""

    def __init__(self, base: Path, ledger: DemoServer) -> None:
        self.base = base
        self.ledger = ledger
        self.options = f"token_file={ledger.token_file}"

    def run(self, script: str, *, link: bool = True) -> subprocess.CompletedProcess[str]:
        prepare = PREPARE.format(
            base=self.base,
            python=sys.executable,
            package=Path(attachfs.__file__).parents[1],
            links=FORGET + (HELPER if link else PROGRAM).format(base=self.base),
        )
        return subprocess.run(
            ["unshare", "--mount", "bash", "-c", prepare + script],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def says(self, script: str, *, link: bool = True) -> list[str]:
        done = self.run(script, link=link)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def shell(tmp_path: Path, ledger: DemoServer) -> Shell:
    return Shell(tmp_path, ledger)


@pytest.mark.parametrize("kind", ["attachfs", "fuse.attachfs"])
def test_mount_t_and_umount(shell: Shell, kind: str) -> None:
    said = shell.says(
        f"""
        mount -t {kind} {shell.ledger.url} mnt -o {shell.options},noatime,x-gvfs-show,cache-size=1G
        ls mnt
        findmnt -no SOURCE,FSTYPE mnt
        umount mnt
        ls mnt
        """,
    )
    assert said[: len(TOP)] == TOP
    assert said[-1].split() == [shell.ledger.url, "fuse.attachfs"]


def test_without_the_helper_mount_fuse_calls_the_program(shell: Shell) -> None:
    said = shell.says(
        f"mount -t fuse.attachfs {shell.ledger.url} mnt -o {shell.options}; ls mnt; umount mnt", link=False
    )
    assert said[: len(TOP)] == TOP


def test_fstab_lines_are_mounted_once_with_options_quoted_and_spelt_either_way(shell: Shell) -> None:
    (shell.base / "config" / "attachfs").mkdir(parents=True)
    (shell.base / "config" / "attachfs" / "config.toml").write_text(
        f'[profile.work]\nurl = "{shell.ledger.url}"\ntoken-file = "{shell.ledger.token_file}"\n'
    )
    words = (
        "_netdev,nofail,user,x-systemd.automount,x-gvfs-name=My\\040ledger,x-whatever=1,"
        f'cache_dir="{shell.base}/a,b",metadata-ttl=5,negative_ttl=1'
    )
    said = shell.says(
        f"""
        mkdir {shell.base}/later
        cat >fstab <<'END'
        work {shell.base}/mnt attachfs {words} 0 0
        {shell.ledger.url} {shell.base}/later attachfs noauto,{shell.options} 0 0
END
        mount -a -T fstab
        mount -a -T fstab
        ls mnt
        ls -A later
        ls -d {shell.base}/a,b
        findmnt -no SOURCE mnt
        mount -T fstab {shell.base}/later
        ls later
        umount {shell.base}/later mnt
        mount -a -T fstab
        umount mnt
        mountpoint mnt || true
        """
    )
    assert said == [
        *TOP,
        f"{shell.base}/a,b",
        "work",
        *TOP,
        "mnt is not a mountpoint",
    ]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("mount -t attachfs {url} mnt -o nonsense=1", 1, "-o nonsense: no such option"),
        ("mount -t attachfs {url} mnt -o cache-size=many", 1, "-o cache_size: 'many' is not a size"),
        ("mount -t attachfs nosuchprofile mnt", 1, "there is no profile 'nosuchprofile'"),
        ("mount.attachfs {url}", 1, "usage: mount.attachfs"),
        ("mount.attachfs --frob {url} mnt", 1, "usage: mount.attachfs"),
        ("mount -t attachfs {url} mnt -o token_file=/nonexistent", 32, "/nonexistent"),
        ("mount.attachfs {url} {base}/missing -o {options}", 32, "mkdir"),
        ("mount -s -t attachfs {url} mnt -o nonsense=1,{options} && umount mnt", 0, ""),
        ("mount -f -t attachfs {url} mnt -o {options} && ! mountpoint -q mnt", 0, ""),
        ("mount -v -n -r -t attachfs {url} mnt -o {options} && umount mnt", 0, "http://"),
    ],
)
def test_exit_codes_are_those_of_mount(shell: Shell, command: str, code: int, words: str) -> None:
    done = shell.run(
        "set +e\n" + command.format(url=shell.ledger.url, base=shell.base, options=shell.options)
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
