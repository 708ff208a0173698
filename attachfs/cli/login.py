"""`attachfs login`: store a token, or an application's id and secret, once the ledger has accepted them."""

import codecs
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import trio

from attachfs.cli import arguments, doctor_ledger, output
from attachfs.cli.findings import Finding, State
from attachfs.config import directories
from attachfs.config import file as config_file
from attachfs.config.settings import Config
from attachfs.errors import UsageError
from attachfs.mount import credentials

_LONGEST = 16 * 1024  # characters; as the files may hold


def run(config: Config) -> int:
    """Ask for the secret, try it, store it; 1 if the ledger refuses it, 3 if it could not be asked."""
    if config.no_auth or config.offline:
        key = "no_auth" if config.no_auth else "offline"
        raise UsageError(f"{config.origins[key]}: no credentials are needed: leave it out to log in")
    if not config.insecure_http and credentials.is_in_clear(config.url):
        raise UsageError(
            f"{config.url}: credentials would cross the network in clear: use https://, or "
            f"--insecure-http if the network is yours"
        )
    is_client = config.client_id is not None
    what = f"Secret of client {config.client_id}" if is_client else "Bearer token"
    target = _secret_file(config) if is_client else config.token_file
    option = "--client-secret-file" if is_client else "--token-file"
    if target.is_dir():
        raise UsageError(f"{target} is a directory: name a file in it with {option}")
    secret = _prompt(f"{what} for {config.url}")
    with _beside(target, secret, option) as written:
        trial = dataclasses.replace(
            config,
            token_file=written,
            client_secret_file=written if is_client else None,
            origins={**config.origins, "token_file": "login"},
        )
        wrong = _first_wrong(trio.run(doctor_ledger.check, trial))
        if wrong is not None:
            output.complain(f"nothing was stored: {wrong.detail}", _remedy(wrong, config))
            return output.DIFFERS if wrong.state is State.WRONG else output.UNKNOWN
        written.replace(target)
    output.note(f"the ledger accepts it; stored in {target}, readable by you only")
    if is_client:
        _configure(config, target)
    return output.OK


def _first_wrong(findings: Iterable[Finding]) -> Finding | None:
    """Return what kept the ledger from accepting it; what could not be tried for that reason is no news."""
    wrong = [one for one in findings if one.state in (State.WRONG, State.UNKNOWN)]
    return min(wrong, key=lambda one: one.state is not State.WRONG, default=None)


def _remedy(wrong: Finding, config: Config) -> str:
    """Return what to do at the prompt, where what doctor says is for credentials that are stored already."""
    if wrong.check != "credentials" or "(403)" in wrong.detail:
        return wrong.remedy
    if config.client_id is not None:
        return "check --client-id and --url, and give the client's secret again, all of it"
    return "give all of a token that is for this ledger (--url) and has not expired"


def _prompt(what: str) -> str:
    if sys.stdin.isatty():
        secret = str(click.prompt(what, hide_input=True, err=True))
    else:
        raw = sys.stdin.buffer.read(_LONGEST + 1)
        secret = raw.removeprefix(codecs.BOM_UTF8).decode("ascii", "replace")
    secret = secret.strip()
    if not secret:
        raise UsageError("nothing was given: type or paste it at the prompt, or pipe it in")
    if len(secret) > _LONGEST or not secret.isascii() or not secret.isprintable():
        raise UsageError("not a token or secret: it must be one line of printable ASCII; give it alone")
    return secret


def _secret_file(config: Config) -> Path:
    name = f"{config.profile or config.host_name}.secret"
    return config.client_secret_file or directories.user_directory("CONFIG") / name


@contextlib.contextmanager
def _beside(target: Path, secret: str, option: str) -> Iterator[Path]:
    """Write the secret into a new file beside `target`, removed unless it is renamed."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {output.reason_of(error)}: choose another file with {option}"
        ) from error
    written = Path(name)
    try:
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(number)
        yield written
    finally:
        written.unlink(missing_ok=True)


def _configure(config: Config, secret_file: Path) -> None:
    """Have later mounts use the application: in a new configuration file, or say what belongs into it."""
    lines = [] if config.profile is None else [f"[profile.{config.profile}]"]
    lines += [f'client-id = "{config.client_id}"', f'client-secret-file = "{secret_file}"']
    if config.origins["url"] != "default":
        lines.append(f'url = "{config.url}"')
    path = config.config or config_file.default_path()
    if config.client_secret_file == secret_file and config.config is not None:
        return
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.chmod(0o600)
        output.note(f"{path} now names it, so that 'attachfs mount' uses it")
        return
    output.note(f"for 'attachfs mount' to use it, put this into {path}:")
    for line in lines:
        output.note(f"  {line}")


@click.command("login")
@arguments.locating_options(
    "url", "client-id", "client-secret-file", "token-file", "ca-file", "insecure-http"
)
@arguments.locating_options("profile", "config", "timeout")
def command(**given: str | None) -> None:
    """Store a bearer token, or with --client-id an application's secret, and try it first.

    You type it at a prompt, where it is not shown, or pipe it in. It is stored only if the ledger accepts it,
    in a file that only you can read.
    """
    sys.exit(run(arguments.settings(given)))
