"""`attachfs login`: store a token, or an application's id and secret, once the ledger has accepted them."""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import trio

from attachfs.cli import arguments, doctor_ledger, output
from attachfs.cli.findings import State
from attachfs.config import directories
from attachfs.config import file as config_file
from attachfs.config.settings import Config
from attachfs.errors import UsageError

_LONGEST = 16 * 1024  # characters; as the files may hold


def run(config: Config) -> int:
    """Ask for the secret, try it, store it; 1 if the ledger refuses it, 3 if it could not be asked."""
    if config.no_auth or config.offline:
        raise UsageError("--no-auth and --offline need no credentials: leave them out")
    is_client = config.client_id is not None
    what = f"Secret of client {config.client_id}" if is_client else "Bearer token"
    target = _secret_file(config) if is_client else config.token_file
    secret = _prompt(f"{what} for {config.url}")
    with _beside(target, secret) as written:
        trial = dataclasses.replace(
            config,
            token_file=written,
            client_secret_file=written if is_client else None,
            origins={**config.origins, "token_file": "login"},
        )
        findings = trio.run(doctor_ledger.check, trial)
        wrong = [one for one in findings if one.state in (State.WRONG, State.UNKNOWN)]
        for finding in wrong:
            output.complain(finding.detail, f"nothing was stored; {finding.remedy}")
        if wrong:
            return output.DIFFERS if any(one.state is State.WRONG for one in wrong) else output.UNKNOWN
        written.replace(target)
    output.note(f"the ledger accepts it; stored in {target}, readable by you only")
    if is_client:
        _configure(config, target)
    return output.OK


def _prompt(what: str) -> str:
    if sys.stdin.isatty():
        secret = str(click.prompt(what, hide_input=True, err=True))
    else:
        secret = sys.stdin.read(_LONGEST + 1)
    secret = secret.strip()
    if not secret or len(secret) > _LONGEST or not secret.isascii() or not secret.isprintable():
        raise UsageError("not a token or secret: it must be one line of printable ASCII")
    return secret


def _secret_file(config: Config) -> Path:
    name = f"{config.profile or config.host_name}.secret"
    return config.client_secret_file or directories.user_directory("CONFIG") / name


@contextlib.contextmanager
def _beside(target: Path, secret: str) -> Iterator[Path]:
    """Write the secret into a new file in the target's directory; it is removed unless it is taken away."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {output.reason_of(error)}") from error
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
