"""The configuration file: its layers, profiles, and mistakes told by file, line and key."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.config import file as config_file
from attachfs.config import options
from attachfs.config.file import ConfigFile, default_path
from attachfs.config.options import FILE_KEYS
from attachfs.config.settings import load
from attachfs.errors import UsageError


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "attachfs" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


TWO = """\
# what all have in common
timeout = 10
cache-size = "2G"
no_auth = true

[profile.work]
url = "https://work.example"
timeout = 20

[profile."at home"]
timeout = 2.5
"""


class TestLayers:
    def test_the_profile_wins_over_the_top_level_and_both_over_the_defaults(self, file: Path) -> None:
        file.write_text(TWO)
        plain = load({}, {}, {})
        assert (plain.timeout, plain.cache_size, plain.no_auth, plain.profile) == (10, 2 * 2**30, True, None)
        work = load({"profile": "work"}, {}, {})
        assert (work.timeout, work.url, work.cache_size) == (20, "https://work.example", 2 * 2**30)
        assert work.origins["timeout"] == f"{file}:8: profile.work.timeout"
        assert work.origins["cache_size"] == f"{file}:3: cache-size"
        assert work.origins["metadata_ttl"] == "default"
        assert work.config == file

    def test_the_environment_and_the_command_line_win_over_the_file(self, file: Path) -> None:
        file.write_text(TWO)
        found = load({"timeout": "1"}, {"profile": "work"}, {"ATTACHFS_URL": "https://env.example"})
        assert (found.timeout, found.url) == (1, "https://env.example")
        assert load({}, {}, {"ATTACHFS_PROFILE": "work"}).timeout == 20

    def test_another_file_can_be_named(self, tmp_path: Path, file: Path) -> None:
        file.write_text("timeout = 3")
        other = tmp_path / "other.toml"
        other.write_text("timeout = 4")
        assert load({"config": str(other)}, {}, {}).timeout == 4
        assert load({}, {"config": "other.toml"}, {}, cwd=tmp_path).timeout == 4
        assert load({}, {}, {"ATTACHFS_CONFIG": str(other)}).timeout == 4

    def test_no_file_is_no_mistake_unless_it_was_named(self, tmp_path: Path) -> None:
        assert load({}, {}, {}).config is None
        with pytest.raises(UsageError, match="there is no such configuration file"):
            load({"config": str(tmp_path / "missing")}, {}, {})

    def test_the_systems_file_where_the_user_has_none(self, file: Path, tmp_path: Path) -> None:
        system = tmp_path / "etc.toml"
        assert default_path(system) == file
        system.write_text("")
        assert default_path(system) == system
        file.write_text("")
        assert default_path(system) == file

    def test_a_profile_used_by_itself(self, file: Path) -> None:
        file.write_text('profile = "work"\n')
        with pytest.raises(UsageError, match="there is no profile 'work'"):
            load({}, {}, {})

    def test_relative_paths_are_relative_to_the_file(self, file: Path, tmp_path: Path) -> None:
        file.write_text('token-file = "token"\nca_file = "~/ca.pem"\nlog-file = "/var/log/x"\n')
        found = load({}, {}, {}, cwd=Path("/"))
        assert found.token_file == file.parent / "token"
        assert found.ca_file == tmp_path / "ca.pem"
        assert found.log_file == Path("/var/log/x")

    def test_profiles_have_caches_of_their_own(self, file: Path, tmp_path: Path) -> None:
        file.write_text("[profile.a]\n[profile.b]\n")
        assert load({"profile": "a"}, {}, {}).cache_dir == tmp_path / ".cache/attachfs/a"
        assert load({"profile": "b"}, {}, {}).cache_dir == tmp_path / ".cache/attachfs/b"

    def test_every_option_but_the_files_own_can_be_in_it(self) -> None:
        assert set(FILE_KEYS) == {option.name for option in options.OPTIONS} - {"config", "profile"}


MISTAKES = [
    ("timeout = 10\nurl = \n", ":2: invalid value"),
    ('timeout = 10\nurl = "x', ":2: "),
    ("[profile.work\n", ":1: "),
    ("timeout = 1\ntimeout = 2\n", ":2: cannot overwrite a value"),
    ("\n\ntimeoutt = 10\n", ":3: timeoutt: no such key; did you mean 'timeout'?"),
    (
        "[profile.work]\n\nscan_polcy = 'off'\n",
        ":3: profile.work.scan_polcy: no such key; did you mean 'scan-policy'?",
    ),
    ("profile.work.xyzzy = 1\n", ":1: profile.work.xyzzy: no such key"),
    ("[profile.work]\ncache = {size = 1}\n", ":2: profile.work.cache: no such key"),
    ("[work]\nurl = 'https://x'\n", ":1: work: no such key"),
    ("client-secret = 'hunter2'\n", ":1: client-secret: no such key; secrets stay in files"),
    ("timeout = [1]\n", ":1: timeout: must be a text, a number, true or false"),
    ("timeout = 1979-05-27\n", ":1: timeout: must be a text"),
    ("umask = 22\n", ":1: umask: write it in quotes"),
    ("timeout = 0\n", ":1: timeout: '0' is less than a second"),
    ("timeout = nan\n", ":1: timeout: 'nan' is not a number of seconds"),
    ("max-connections = 1.5\n", ":1: max-connections: '1.5' is not a whole number"),
    ("allow-other = 'maybe'\n", ":1: allow-other: 'maybe' is neither yes nor no"),
    ("cache-size = '1G'\ncache_size = '2G'\n", ":2: cache_size: given twice"),
    ("config = '/x'\n", ":1: config: no such key"),
    ("[profile]\nwork = 1\n", ":2: profile.work: a profile is a table"),
    ("profile = 1\n", ":1: profile: no such key"),
    ("timeout = 1\n\xff", None),
]


class TestMistakes:
    @pytest.mark.parametrize(("text", "words"), MISTAKES, ids=lambda value: ascii(value)[:40])
    def test_mistakes_are_reported_by_file_line_and_key(
        self, file: Path, text: str, words: str | None
    ) -> None:
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(UsageError) as caught:
            load({}, {}, {})
        assert caught.value.reason.startswith(str(file) + (words or ":2: not UTF-8"))
        assert "hunter2" not in caught.value.reason

    @pytest.mark.parametrize(
        ("name", "words"),
        [("wrok", "did you mean 'work'"), ("zzz", "there are: work, at home"), ("a/b", "is not a name")],
    )
    def test_a_profile_that_is_not_there(self, file: Path, name: str, words: str) -> None:
        file.write_text(TWO)
        with pytest.raises(UsageError, match=words):
            load({"profile": name}, {}, {})

    def test_other_profiles_are_checked_too(self, file: Path) -> None:
        file.write_text(TWO + "typo = 1\n")
        with pytest.raises(UsageError, match=r":12: profile\.at home\.typo"):
            load({"profile": "work"}, {}, {})

    def test_a_directory_is_no_configuration_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read"):
            ConfigFile(tmp_path)

    def test_a_configuration_file_that_is_too_large_is_refused(self, file: Path) -> None:
        file.write_bytes(b"#" * (config_file._LIMIT + 1))
        with pytest.raises(UsageError, match="larger than"):
            load({}, {}, {})

    def test_a_file_that_is_nested_deeply_is_refused(self, file: Path) -> None:
        file.write_text("timeout = " + "[" * 100_000)
        with pytest.raises(UsageError):
            load({}, {}, {})

    @given(st.text(max_size=200))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        list(config_file._keys(text))

    def test_files_of_other_systems(self, file: Path) -> None:
        for saved in (TWO.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + TWO.encode()):
            file.write_bytes(saved)
            assert load({"profile": "work"}, {}, {}).profile == "work"
        for saved in (TWO.encode("utf-16"), b"\xfe\xff" + TWO.encode("utf-16-be")):
            file.write_bytes(saved)
            with pytest.raises(UsageError, match="UTF-16: save it as UTF-8"):
                load({}, {}, {})

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("url = http://x.example", r'text stands in quotes: url = "http://x\.example"'),
            ("[profiles.work]\nurl = 'http://x'", r"a profile is a table \[profile\.NAME\]"),
            ("cache-size = 20", "too few for a cache; with a unit: 20G"),
        ],
    )
    def test_slips_are_told_with_what_was_meant(self, file: Path, text: str, hint: str) -> None:
        file.write_text(text)
        with pytest.raises(UsageError, match=hint):
            load({}, {}, {})

    @pytest.mark.parametrize("mode", [0o666, 0o602, 0o777])
    def test_a_configuration_file_that_others_may_write_is_refused(self, file: Path, mode: int) -> None:
        file.write_text(TWO)
        file.chmod(mode)
        with pytest.raises(UsageError, match=r"can be written by other users: run: chmod 600 .*config\.toml"):
            load({}, {}, {})

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_a_configuration_file_of_somebody_else_is_refused(self, file: Path) -> None:
        file.write_text(TWO)
        os.chown(file, 4321, 4321)
        with pytest.raises(UsageError, match="belongs to user 4321, who could change it"):
            load({}, {}, {})

    def test_pipes_and_devices_are_the_callers_own(self) -> None:
        assert ConfigFile(Path(os.devnull)).profiles == []
