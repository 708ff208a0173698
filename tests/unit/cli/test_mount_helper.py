"""What mount(8) passes, understood."""

from pathlib import Path

import pytest

from attachfs.cli import mount_helper
from attachfs.cli.mount_helper import Call, parse
from attachfs.errors import UsageError

URL = "https://a.example"


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ([URL, "/m"], Call(URL, Path("/m"), {"url": URL, "fsname": URL}, fake=False, verbose=False)),
        (
            [URL, "/m", "-o", "rw,noexec,user=ann,timeout=5,cache-size=1G"],
            Call(
                URL,
                Path("/m"),
                {"timeout": "5", "cache_size": "1G", "url": URL, "fsname": URL},
                fake=False,
                verbose=False,
            ),
        ),
        (
            ["-sfnv", "-o", "what=ever", "work", "/m", "-t", "fuse.attachfs"],
            Call("work", Path("/m"), {"profile": "work", "fsname": "work"}, fake=True, verbose=True),
        ),
        (
            ["none", "/m", "-o", "url=http://h,fsname=x"],
            Call("none", Path("/m"), {"url": "http://h", "fsname": "x"}, fake=False, verbose=False),
        ),
    ],
)
def test_what_mount_passes_is_understood(arguments: list[str], call: Call) -> None:
    assert parse(arguments) == call


@pytest.mark.parametrize(
    "arguments", [[], [URL], [URL, "/m", "/n"], ["", "/m"], [URL, ""], [URL, "/m", "-x"], [URL, "/m", "-o"]]
)
def test_a_wrong_call_is_refused_with_the_synopsis(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"usage: mount\.attachfs"):
        parse(arguments)
    assert mount_helper.main(arguments) == mount_helper.USAGE


def test_the_mount_helper_prints_its_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_helper.main(["--help"]) == 0
    assert mount_helper.main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("usage: mount.attachfs SOURCE DIRECTORY")
