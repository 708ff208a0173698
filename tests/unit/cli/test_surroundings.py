"""What the surroundings give the program: it works, or names the true cause and its remedy in a sentence.

Tried besides these: streams and terminals (test_streams.py), the files of credentials (service/test_auth.py),
records at the kernel's bounds (test_model.py, mount/test_limits.py).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from attachfs.cli import doctor_ledger
from attachfs.cli import main as cli_main
from attachfs.cli.findings import State
from attachfs.config.settings import load
from attachfs.errors import Unreachable, UsageError

ROOT = Path(__file__).parents[3]


def run(
    tmp_path: Path, *words: str, cwd: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user whose home is `tmp_path`; nothing it prints is a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "attachfs", *words],
        env={
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            **environ,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=cwd,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done


# Variables that change nothing: of Python, of OpenSSL, of httpx, of click and rich, of the system.
HARMLESS = [
    {"PYTHONSAFEPATH": "1", "PYTHONFAULTHANDLER": "1", "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1"},
    {"PYTHONINTMAXSTRDIGITS": "640", "PYTHONASYNCIODEBUG": "1", "PYTHONBREAKPOINT": "nowhere.at"},
    {"PYTHONPYCACHEPREFIX": "relative", "PYTHONSTARTUP": "nowhere", "PYTHONMALLOC": "debug"},
    {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "error"},
    {"PYTHONTRACEMALLOC": "1", "PYTHONUTF8": "0", "LC_ALL": "POSIX"},
    {"LC_ALL": "xx_YY.UTF-8", "LANGUAGE": "xx"},
    {"LC_ALL": "de_DE.ISO-8859-1", "TZ": "<+99>-99"},
    {"LC_ALL": "nonsense", "TZ": "../../etc"},
    {"SSL_CERT_FILE": "nowhere", "SSL_CERT_DIR": "nowhere", "OPENSSL_CONF": "nowhere"},
    {"OPENSSL_MODULES": "nowhere", "OPENSSL_ENGINES": "nowhere", "OPENSSL_ia32cap": "nonsense"},
    {"NETRC": "nowhere", "NO_PROXY": ",,[::1],10.0.0.0/8,:::", "HTTPS_PROXY": ""},
    {"COLUMNS": "99999999999999999999", "LINES": "x", "TERM": "dumb"},
    {"CLICOLOR_FORCE": "1", "COLORTERM": "truecolor", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"},
    {"JUPYTER_COLUMNS": "x", "NO_COLOR": "", "COMP_WORDS": "x"},
    {"TMPDIR": "/nowhere/at/all", "XDG_RUNTIME_DIR": "nowhere", "XDG_DATA_HOME": "x"},
    {"NOTIFY_SOCKET": "nonsense", "WATCHDOG_USEC": "x", "JOURNAL_STREAM": "x", "LISTEN_FDS": "3"},
    {"USER": "", "LOGNAME": "", "SHELL": "x", "PAGER": "x", "EDITOR": "x"},
    {"XDG_CONFIG_HOME": "relative", "XDG_STATE_HOME": "", "XDG_CACHE_HOME": "relative"},
    {"ATTACHFS_CONFIG": "", "ATTACHFS_NO_SUCH_OPTION": "1"},
]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("home"), "config", "show").stdout


@pytest.mark.parametrize("environ", HARMLESS, ids=" ".join)
def test_variables_that_change_nothing(environ: dict[str, str], usual: str, tmp_path: Path) -> None:
    done = run(tmp_path, "config", "show", **environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == usual


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"HOME": "relative"}, ("HOME is not an absolute path", "set HOME")),
        ({"ATTACHFS_TIMEOUT": "x"}, ("ATTACHFS_TIMEOUT: 'x' is not a number of seconds",)),
        ({"DATATRAILS_URL": "x"}, ("DATATRAILS_URL: 'x' is not an http or https address",)),
        ({"_ATTACHFS_COMPLETE": "nonsense"}, ("_ATTACHFS_COMPLETE=nonsense", "unset it")),
        ({"_ATTACHFS_COMPLETE": "bash_complete"}, ("is for shells", "unset it")),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, dict) else "",
)
def test_a_variable_of_no_use_is_named(
    environ: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(tmp_path, "config", "show", **environ)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_that_does_not_answer_is_blamed_and_not_the_ledger(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    error = Unreachable("cannot connect")
    error.__cause__ = ConnectionRefusedError()
    assert "--url" in doctor_ledger.explain(error, "http://ledger.test")[0].remedy
    monkeypatch.setenv(variable, "http://user:hunter2@127.0.0.1:1")
    there, _ = doctor_ledger.explain(error, "http://ledger.test")
    assert there.state is State.WRONG
    assert f"the proxy in {variable}" in there.remedy
    assert "hunter2" not in there.remedy
    monkeypatch.setenv("no_proxy", "ledger.test")
    assert "--url" in doctor_ledger.explain(error, "http://ledger.test")[0].remedy


CONTENTS = [
    (b"\xef\xbb\xbftimeout = 5\r\n", None),  # Notepad
    (b"timeout = 5", None),  # no line end
    (b"", None),
    (b"timeout = 5\n\0", "NUL bytes"),
    ('timeout = "5"\r\n'.encode("utf-16"), "UTF-16"),
    ('timeout = "5"\r\n'.encode("utf-16-le"), "NUL bytes"),
    (b"timeout = 5\rurl = 'x'\r", ":1: expected newline"),  # an old Mac's
    (b"timeout = 5\n\x1a", ":2: "),  # CP/M's end of a file
    (b"timeout = 5\n# \xe4\n", ":2: not UTF-8 text"),  # Latin-1
    (b"#" * (1 << 20) + b"\n", "larger than a configuration can be"),
]


@pytest.mark.parametrize(("content", "complaint"), CONTENTS, ids=lambda one: ascii(one)[:24])
def test_configuration_files_of_other_systems(content: bytes, complaint: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    if complaint is None:
        assert load({"config": str(file)}, {}, {}).timeout == (5 if content else 60)
        return
    with pytest.raises(UsageError) as caught:
        load({"config": str(file)}, {}, {})
    assert str(file) in caught.value.reason
    assert complaint in caught.value.reason


@pytest.mark.parametrize("foreground", [["-f"], []], ids=["foreground", "background"])
@pytest.mark.parametrize(
    ("options", "environ", "words"),
    [
        ([], {"XDG_STATE_HOME": "/dev/null"}, ("/dev/null/attachfs", "XDG_STATE_HOME")),
        ([], {"XDG_CACHE_HOME": "/dev/null"}, ("/dev/null/attachfs", "--cache-dir")),
        (["--log-file", "/dev/null/x"], {}, ("/dev/null/x", "--log-file")),
        (["--ca-file", "/dev/null"], {}, ("--ca-file /dev/null", "BEGIN CERTIFICATE")),
        ([], {"SSLKEYLOGFILE": "/dev/null/x"}, ("TLS cannot be set up", "SSLKEYLOGFILE")),
        ([], {"http_proxy": "http://[::1"}, ("http_proxy in the environment", "http://host:port")),
    ],
    ids=lambda one: " ".join(one) if one else "",
)
def test_a_mount_that_can_never_work_says_what_to_change(
    options: list[str], environ: dict[str, str], words: tuple[str, str], foreground: list[str], tmp_path: Path
) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    command = ["mount", *foreground, "--no-auth", "--url=http://127.0.0.1:1", *options, str(point)]
    done = run(tmp_path, *command, **environ)
    assert done.returncode == 2
    [said] = [line for line in done.stderr.splitlines() if "ERROR" not in line]
    assert said.startswith("attachfs: ")
    assert all(word in said for word in words), said


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [(os.mkfifo, "is a pipe"), (Path.mkdir, "Is a directory"), (make_loop, "Too many levels")],
    ids=["pipe", "directory", "loop"],
)
def test_what_is_no_configuration_file(
    make: "type[Path] | object", complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "attachfs" / "config.toml"
    named.parent.mkdir()
    make(named)  # type: ignore[operator]
    with pytest.raises(UsageError, match=complaint):
        load({"config": str(named)}, {}, {})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if complaint == "is a pipe":  # found, not named: it must not be waited for either
        with pytest.raises(UsageError, match=complaint):
            load({}, {}, {})


@pytest.mark.parametrize(
    "option", ["ca-file", "token-file", "client-secret-file", "log-file", "custody-log", "log-key"]
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=rf"--{option}: .*pipe is a pipe, .*: name a file"):
        load({option.replace("-", "_"): str(tmp_path / "pipe")}, {}, {})


def test_commands_work_where_the_current_directory_is_gone_or_say_so(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    script = f"mkdir -p {gone} && cd {gone} && rmdir {gone} && exec {sys.executable} -m attachfs"
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    for words, code, said in (
        ("config show", 0, ""),
        ("mount --token-file x /nowhere", 2, "relative to the current directory, which is gone"),
        ("ls x", 2, "x"),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{script} {words}"], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["n" * 255, "n" * 256, "ü" * 128, "\udcff", "a\nb", "-x"])
def test_paths_at_every_bound_are_named_and_not_followed_by_a_traceback(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli_main.main, ["ls", str(tmp_path / name)])
    assert done.exit_code == 2
    assert done.stderr.startswith("attachfs: ")
    assert done.stderr.count("\n") == 1
