"""The configuration: which layer wins, and mistakes told by name wherever they were made."""

import os
from pathlib import Path
from typing import Any

import pytest

from attachfs.config import directories, settings
from attachfs.config.options import OPTIONS
from attachfs.config.permissions import require_own
from attachfs.config.settings import load, parse_o_words
from attachfs.errors import UsageError
from attachfs.units import MinFree


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


class TestDefaults:
    def test_live_where_a_linux_user_looks(self, home: Path) -> None:
        found = load({}, {}, {})
        assert found.url == "https://app.datatrails.ai"
        assert found.host == "app.datatrails.ai"
        assert found.token_file == home / ".datatrails/bearer-token.txt"
        assert found.cache_dir == home / ".cache/attachfs/app.datatrails.ai"
        assert found.state_dir == home / ".local/state/attachfs"

    def test_the_defaults_have_their_values(self) -> None:
        found = load({}, {}, {})
        assert (found.cache_size, found.cache_min_free) == (10 * 2**30, MinFree(percent=5))
        assert (found.verify, found.strict_limit, found.scan_policy) == ("auto", 32 * 2**20, "block-bad")
        assert (found.max_connections, found.timeout, found.metadata_ttl, found.negative_ttl) == (
            32,
            60,
            60,
            5,
        )
        assert (found.no_auth, found.allow_other, found.umask) == (False, False, 0)
        assert (found.uid, found.gid) == (os.getuid(), os.getgid())
        assert (found.ca_file, found.log_file, found.log_level) == (None, None, "info")
        assert set(found.origins.values()) == {"default"}

    def test_hosts_have_caches_of_their_own(self) -> None:
        urls = ["https://a.example", "https://b.example", "http://127.0.0.1:8000", "http://[::1]:8000"]
        folders = [load({"url": url}, {}, {}).cache_dir for url in urls]
        assert len(set(folders)) == len(urls)
        assert {folder.parent for folder in folders} == {folders[0].parent}

    def test_every_option_has_help_and_a_parser_that_takes_its_default(self) -> None:
        for option in OPTIONS:
            assert option.help.endswith(".")
            if option.default is not None:
                option.parse(option.default)


class TestPrecedence:
    def test_the_command_line_then_o_words_then_the_environment_then_the_default(self) -> None:
        layers: list[tuple[dict[str, str], dict[str, str], dict[str, str], float, str]] = [
            ({"timeout": "2"}, {"timeout": "3"}, {"ATTACHFS_TIMEOUT": "4"}, 2, "--timeout"),
            ({}, {"timeout": "3"}, {"ATTACHFS_TIMEOUT": "4"}, 3, "-o timeout"),
            ({}, {}, {"ATTACHFS_TIMEOUT": "4"}, 4, "ATTACHFS_TIMEOUT"),
            ({}, {}, {}, 60, "default"),
        ]
        for command_line, o_words, environ, value, origin in layers:
            found = load(command_line, o_words, environ)
            assert (found.timeout, found.origins["timeout"]) == (value, origin)

    def test_the_vendors_variable_sets_the_address_and_ours_wins(self) -> None:
        theirs = {"DATATRAILS_URL": "https://theirs.example"}
        assert load({}, {}, theirs).url == "https://theirs.example"
        ours = {**theirs, "ATTACHFS_URL": "https://ours.example"}
        assert load({}, {}, ours).url == "https://ours.example"

    def test_an_empty_variable_is_none(self) -> None:
        assert load({}, {}, {"ATTACHFS_URL": "", "ATTACHFS_TIMEOUT": ""}).timeout == 60

    def test_every_option_has_a_variable(self) -> None:
        for option in OPTIONS:
            assert option.variables[0] == f"ATTACHFS_{option.key.upper()}"

    def test_no_option_takes_a_secret(self) -> None:
        for option in OPTIONS:
            secret = {"token", "secret", "password"} & {*option.name.split("-")}
            assert not secret or option.name.endswith("-file")

    def test_the_environment_of_the_process_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTACHFS_MAX_CONNECTIONS", "7")
        assert load({}).max_connections == 7


class TestOWords:
    @pytest.mark.parametrize(
        ("words", "options"),
        [
            ("", {}),
            ("timeout=5", {"timeout": "5"}),
            ("cache-size=1G,cache_dir=/x", {"cache_size": "1G", "cache_dir": "/x"}),
            ("allow_other", {"allow_other": "yes"}),
            ("allow-other,no_auth", {"allow_other": "yes", "no_auth": "yes"}),
            ("allow_other=no", {"allow_other": "no"}),
            ("ro,noauto,nofail,_netdev,user,nosuid,nodev,noexec,relatime,defaults", {}),
            ("x-systemd.automount,x-gvfs-name=a b,X-mount.mkdir,comment=hello", {}),
            ('cache_dir="/a,b",timeout=5', {"cache_dir": "/a,b", "timeout": "5"}),
            ('cache_dir="/a=b"', {"cache_dir": "/a=b"}),
            ("url=http://h:1/a=b", {"url": "http://h:1/a=b"}),
            (" timeout=5 , ro ", {"timeout": "5"}),
            (",,timeout=5,,", {"timeout": "5"}),
            ("timeout=5,timeout=6", {"timeout": "6"}),
            ("timeout=", {"timeout": ""}),
            ("uid=1000,gid=100,umask=022", {"uid": "1000", "gid": "100", "umask": "022"}),
            ('cache_dir="/never closed,timeout=5', {"cache_dir": "/never closed,timeout=5"}),
        ],
    )
    def test_the_words_of_o_are_understood(self, words: str, options: dict[str, str]) -> None:
        assert parse_o_words(words) == options

    @pytest.mark.parametrize("word", ["nonsense", "nonsense=1", "timeoutt=1", "y-x", "rw2", "allow_root"])
    def test_an_unknown_word_is_told(self, word: str) -> None:
        with pytest.raises(UsageError, match=f"-o {word.partition('=')[0]}: no such option"):
            parse_o_words(f"ro,{word}")

    @pytest.mark.parametrize("word", ["timeout", "cache-dir", "uid"])
    def test_an_option_without_its_value_is_told(self, word: str) -> None:
        with pytest.raises(UsageError, match=f"-o {word} needs a value"):
            parse_o_words(word)

    def test_a_long_hostile_argument_is_read_at_once(self) -> None:
        with pytest.raises(UsageError):
            parse_o_words('"' * 50_001 + "x,")


PARSED: list[tuple[str, str, Any]] = [
    ("url", "http://localhost:8000/", "http://localhost:8000"),
    ("url", "https://[::1]:8443", "https://[::1]:8443"),
    ("no_auth", "YES", True),
    ("no_auth", "off", False),
    ("cache_size", "512M", 512 * 2**20),
    ("cache_min_free", "1G", MinFree(bytes=2**30)),
    ("verify", "strict", "strict"),
    ("strict_limit", "0", 0),
    ("scan_policy", "require-ok", "require-ok"),
    ("max_connections", "1000", 1000),
    ("timeout", "1", 1.0),
    ("timeout", "0.5e2", 50.0),
    ("metadata_ttl", "0", 0.0),
    ("negative_ttl", "2.5", 2.5),
    ("uid", "0", 0),
    ("gid", "4294967294", 4294967294),
    ("umask", "0277", 0o277),
    ("umask", "7777", 0o777),
    ("log_level", "debug", "debug"),
    ("log_file", "/var/log/x", Path("/var/log/x")),
]

REFUSED: list[tuple[str, str]] = [
    *(("fsname", text) for text in ("ü", "a\nb", "x" * 513)),
    *(
        ("url", text)
        for text in ["", "app.datatrails.ai", "ftp://h", "https://", "https:///x", "file:///x", "https://h:0"]
    ),
    *(
        ("url", text)
        for text in ["https://h:99999", "https://h:x", "https://[::1", "https://u@h", "https://u:p@h"]
    ),
    *(("url", text) for text in ["https://h?x=1", "https://h#x", "javascript:x"]),
    *(("no_auth", text) for text in ["", "maybe", "2"]),
    *(("token_file", text) for text in ["", "a\0b", "~nobody-of-this-name/x"]),
    *(("cache_size", text) for text in ["", "-1", "10X", "1e9", "nan", "5%", "9999999P", "٣G"]),
    *(("cache_min_free", text) for text in ["", "100%", "-1%", "x"]),
    *(("strict_limit", text) for text in ["", "-1"]),
    *(("verify", text) for text in ["", "STRICT", "none"]),
    *(("scan_policy", text) for text in ["", "block", "block_bad"]),
    *(("max_connections", text) for text in ["", "0", "1001", "-1", "1.5", "٣", "1" * 30, " 1"]),
    *(("timeout", text) for text in ["", "0", "0.9", "-1", "nan", "inf", "60s", "1e300", "9" * 400]),
    *(("metadata_ttl", text) for text in ["", "-1", "nan", "inf", "x"]),
    *(("negative_ttl", text) for text in ["", "-0.1", "nan"]),
    *(("uid", text) for text in ["", "-1", "root", "4294967295", "1.0", "٣"]),
    *(("gid", text) for text in ["", "-1", "users", "4294967296"]),
    *(("umask", text) for text in ["", "8", "0o22", "-1", "77777", "٣"]),
    *(("log_level", text) for text in ["", "DEBUG", "trace"]),
]


class TestValues:
    @pytest.mark.parametrize(("key", "text", "value"), PARSED)
    def test_an_options_text_is_parsed_to_its_value(self, key: str, text: str, value: object) -> None:
        assert getattr(load({key: text}, {}, {}), key) == value

    def test_paths_are_made_absolute_and_tildes_expanded(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(home)
        found = load({"cache_dir": "~/c", "token_file": "t"}, {}, {})
        assert (found.cache_dir, found.token_file) == (home / "c", home / "t")

    @pytest.mark.parametrize(("key", "text"), REFUSED, ids=ascii)
    def test_a_value_that_cannot_be_used_is_refused_and_the_option_named(self, key: str, text: str) -> None:
        name = key.replace("_", "-")
        with pytest.raises(UsageError, match=f"^--{name}: ") as caught:
            load({key: text}, {}, {})
        assert "Traceback" not in caught.value.reason

    def test_the_message_names_where_it_was_given(self) -> None:
        with pytest.raises(UsageError, match=r"^-o max_connections: "):
            load({}, {"max_connections": "0"}, {"ATTACHFS_MAX_CONNECTIONS": "x"})
        with pytest.raises(UsageError, match=r"^ATTACHFS_MAX_CONNECTIONS: "):
            load({}, {}, {"ATTACHFS_MAX_CONNECTIONS": "x"})
        with pytest.raises(UsageError, match=r"^DATATRAILS_URL: "):
            load({}, {}, {"DATATRAILS_URL": "x"})

    def test_a_layer_that_is_overridden_may_be_wrong(self) -> None:
        assert load({"timeout": "2"}, {"timeout": "x"}, {"ATTACHFS_TIMEOUT": "x"}).timeout == 2

    @pytest.mark.parametrize(
        "text", ["https://user:hunter2@h", "https://h/?token=hunter2", "https://h/#hunter2"]
    )
    def test_a_refused_address_does_not_repeat_its_secrets(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            load({"url": text}, {}, {})
        assert "hunter2" not in caught.value.reason

    def test_the_result_is_frozen(self) -> None:
        with pytest.raises(AttributeError):
            load({}, {}, {}).url = "x"  # type: ignore[misc]

    def test_every_option_is_a_field(self) -> None:
        fields = set(settings.Config.__dataclass_fields__)
        assert fields - {"state_dir", "origins"} == {option.key for option in OPTIONS}


class TestArchive:
    def test_an_archive_needs_no_service_and_shows_where_it_is(self, tmp_path: Path) -> None:
        found = load({"archive": "bag 1"}, {}, {"DATATRAILS_URL": "https://a.example"}, cwd=tmp_path)
        assert found.archive == tmp_path / "bag 1"
        assert found.source == found.url == f"file://{tmp_path}/bag%201"
        assert found.offline

    @pytest.mark.parametrize(
        ("line", "words", "named"),
        [
            ({"url": "https://a.example"}, {}, "--url"),
            ({"no_auth": "yes"}, {}, "--no-auth"),
            ({}, {"token_file": "/t"}, "-o token_file"),
            ({}, {"cache_dir": "/c"}, "-o cache_dir"),
        ],
    )
    def test_naming_a_ledger_beside_it_is_a_mistake(
        self, line: dict[str, str], words: dict[str, str], named: str
    ) -> None:
        with pytest.raises(UsageError, match=f"^{named} cannot be combined with --archive"):
            load({"archive": "/bag", **line}, words, {})

    def test_its_bytes_are_always_verified(self) -> None:
        with pytest.raises(UsageError, match="always verified"):
            load({"archive": "/bag"}, {}, {"ATTACHFS_VERIFY": "off"})


class TestSurroundings:
    def test_the_current_directory_is_asked_for_only_where_it_matters(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        assert load({"token_file": "/t", "log_file": "~/log"}, {}, {}).token_file == Path("/t")
        with pytest.raises(UsageError, match=r"^t is relative to the current"):
            load({"token_file": "t"}, {}, {})
        with pytest.raises(UsageError, match="which is gone: give an absolute path"):
            directories.absolute(Path("mnt"))
        assert directories.absolute(Path("/mnt")) == Path("/mnt")

    def test_variables_that_are_no_absolute_path_are_ignored(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for value in ("", "relative", "./x", "~/x"):
            monkeypatch.setenv("XDG_CACHE_HOME", value)
            monkeypatch.setenv("XDG_STATE_HOME", value)
            found = load({}, {}, {})
            assert found.cache_dir == home / ".cache/attachfs/app.datatrails.ai"
            assert found.state_dir == home / ".local/state/attachfs"

    def test_a_user_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOME")

        def nobody(_: int) -> object:
            raise KeyError

        monkeypatch.setattr("pwd.getpwuid", nobody)
        with pytest.raises(
            UsageError, match="no home directory: set HOME, or XDG_CONFIG_HOME, to an absolute"
        ):
            load({}, {}, {})
        for kind in ("CONFIG", "CACHE", "STATE"):
            monkeypatch.setenv(f"XDG_{kind}_HOME", f"/srv/{kind}")
        assert load({}, {}, {}).cache_dir == Path("/srv/CACHE/attachfs/app.datatrails.ai")
        with pytest.raises(UsageError, match=r"--token-file: ~/t: there is no such home directory"):
            load({"token_file": "~/t"}, {}, {})

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
    def test_a_private_directory_of_ones_own_passes(self, tmp_path: Path) -> None:
        require_own(tmp_path, tmp_path.stat(), "x", "700")

    def test_a_directory_for_all_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(UsageError, match="can be written by other users: run: chmod 700"):
            require_own(tmp_path, tmp_path.stat(), "the state directory", "700")


def test_remounting_is_told_to_be_impossible() -> None:
    with pytest.raises(UsageError, match="cannot be changed: unmount it, and mount it again"):
        parse_o_words("remount,ro")
