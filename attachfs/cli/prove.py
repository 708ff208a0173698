"""`attachfs prove`: whether events are committed to the transparency log, and under whose signature."""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

import click
import trio

from attachfs import model
from attachfs.archive import layout
from attachfs.archive.folder import BagFolder
from attachfs.cli import arguments, evidence, interruptible, output
from attachfs.cli.evidence import Evidence
from attachfs.cli.paths import Mounts
from attachfs.config.settings import Config, file_name
from attachfs.errors import UsageError
from attachfs.mount import mountinfo
from attachfs.proof.errors import ProofError, State
from attachfs.proof.fetch import fetch_logs
from attachfs.proof.log_files import GivenFiles, KeptLogs, load_keys
from attachfs.proof.prove import LogFiles, Proof, leaves_of, prove
from attachfs.service.connections import open_http
from attachfs.service.transparency_log import PATH, LogClient

_BATCH = 500  # records in memory at a time


class Files(NamedTuple):
    """What proves an event from files alone."""

    event: Path | None
    massif: Path | None
    seal: Path | None


class _Result(NamedTuple):
    evidence: Evidence
    proof: Proof


def run(config: Config, paths: Sequence[Path], files: Files, *, tenant: str | None, as_json: bool) -> int:
    """Print a verdict on each event and return the exit code: 1 if one is contradicted, else 3 if unknown."""
    prover = _Prover(config, tenant)
    counts: Counter[int] = Counter()
    shown: list[_Result] = []
    seen: set[tuple[str, State, str]] = set()  # an event that carries several files is one event

    def work() -> int:
        for result in prover.results(paths, files):
            if as_json:
                output.say_json(_facts(result))
            verdict = (result.evidence.path, result.proof.state, result.proof.reason)
            if verdict in seen:
                continue
            seen.add(verdict)
            counts[result.proof.state.code] += 1
            if not as_json:
                shown.append(result)
        return _conclude(counts, shown)

    return interruptible.run(work, lambda: f"prove: interrupted after {_summary(counts)}")


def _conclude(counts: Counter[int], shown: list[_Result]) -> int:
    if shown:
        _print(shown)
    output.note(f"prove: {_summary(counts)}")
    if counts[output.DIFFERS]:
        return output.DIFFERS
    return output.UNKNOWN if counts[output.UNKNOWN] or not counts else output.OK


def _summary(counts: Counter[int]) -> str:
    return (
        f"{output.count(counts.total(), 'event')}: {counts[0]:,} proven, {counts[1]:,} contradicted, "
        f"{counts[3]:,} could not be found out"
    )


class _Prover:
    def __init__(self, config: Config, tenant: str | None) -> None:
        self._config = config
        self._tenant = tenant
        self._keys = load_keys(list(config.log_key or ()))

    def results(self, paths: Sequence[Path], files: Files) -> Iterator[_Result]:
        if files.event is not None:
            found = [evidence.from_file(files.event)]
            if files.massif is not None and files.seal is not None:
                yield from self._offline(found, GivenFiles(files.massif, files.seal))
            else:
                yield from self._online(found, self._config.url)
            return
        mounts = Mounts()
        for path in paths:
            if (path / layout.DECLARATION).is_file() and mounts.of(path) is None:
                yield from self._bag(path, None)
            else:
                yield from self._mounted(mounts, path)

    def _mounted(self, mounts: Mounts, path: Path) -> Iterator[_Result]:
        mounts.require([path])
        mount = mounts.of(path)
        assert mount is not None  # else it was refused
        found = evidence.from_mount(mount, path)
        status = mountinfo.status(mount.point) or {}
        if isinstance(status.get("archive"), str):
            yield from self._bag(Path(status["archive"]), found)
        else:
            yield from self._online(found, str(status.get("url") or self._config.url))

    def _bag(self, bag: Path, found: Iterable[Evidence] | None) -> Iterator[_Result]:
        with BagFolder(bag) as folder:
            events = evidence.from_bag(folder) if found is None else found
            yield from self._offline(events, evidence.BagLogs(folder))

    def _offline(self, found: Iterable[Evidence], log: LogFiles) -> Iterator[_Result]:
        for one in found:
            yield _Result(one, self._prove(one, log))

    def _online(self, found: Iterable[Evidence], url: str) -> Iterator[_Result]:
        events = iter(found)
        while batch := list(itertools.islice(events, _BATCH)):
            leaves = leaves_of((one.event for one in batch), self._tenant)
            kept = bring_logs(self._config, url, leaves)
            for result in self._offline(batch, kept):
                self._remember(kept, result.proof)
                yield result

    def _remember(self, kept: KeptLogs, proof: Proof) -> None:
        try:
            kept.remember(proof)
        except (OSError, ProofError) as error:
            output.complain(kept.folder, f"what was sealed cannot be remembered: {error}")

    def _prove(self, one: Evidence, log: LogFiles) -> Proof:
        if one.problem is not None:
            return Proof(one.problem.state, one.problem.reason)
        proof = prove(one.event, log, self._keys, self._tenant)
        if proof.state is State.PROVEN:
            try:
                evidence.check_digest(one)
            except ProofError as error:
                return proof._replace(state=error.state, reason=error.reason)
        return proof


def _log_url(config: Config, url: str) -> str:
    return config.log_url or f"{url}{PATH}"


def kept_logs(config: Config, url: str) -> KeptLogs:
    """Return what is kept, and remembered, of a ledger's logs."""
    return KeptLogs(config.state_dir / "logs" / file_name(_log_url(config, url)))


def bring_logs(config: Config, url: str, leaves: Mapping[str, AbstractSet[int]]) -> KeptLogs:
    """Fetch what proofs need from where a ledger's logs are served, and return what is kept of them.

    Args:
        config: says where they are and how to get there, and where they are kept.
        url: the ledger's address.
        leaves: by tenant, the numbers of leaves in its log.
    """
    log_url = _log_url(config, url)
    kept = kept_logs(config, url)

    async def fetch() -> None:
        async with open_http(ca_file=config.ca_file, max_connections=1) as http:
            await fetch_logs(leaves, LogClient(http, log_url, timeout=config.timeout), kept)

    trio.run(fetch)
    return kept


def _facts(result: _Result) -> dict[str, Any]:
    proof, one = result.proof, result.evidence
    return {
        "path": one.path,
        "event": str(one.event.get("identity", "")),
        "attachment": one.attachment,
        "sha256": one.digest,
        **proof._asdict(),
        "state": str(proof.state),
    }


def _print(results: list[_Result]) -> None:
    rows = []
    for one, proof in results:
        key = f"{proof.key} {proof.key_fingerprint[:23]}…" if proof.key_fingerprint else ""
        rows.append(
            (
                one.path,
                proof.state,
                proof.leaf[:16],
                "" if proof.mmr_index is None else proof.mmr_index,
                "" if proof.sealed_size is None else proof.sealed_size,
                key,
                proof.reason,
            )
        )
    output.print_table(
        ("event", "state", "leaf", "position", "sealed", "key", "why"), rows, right=("position", "sealed")
    )


def _tenant(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    name = None if value is None else value.lower().removeprefix("tenant/")
    if name is not None and not model.is_uuid(name):
        raise click.BadParameter("it is not a tenant's UUID")
    return name


_file = arguments.AnyPath()


@click.command("prove")
@click.argument("paths", nargs=-1, type=_file, metavar="[PATH…|BAG]")
@click.option("--event", type=_file, metavar="FILE", help="Prove the event whose record is in FILE.")
@click.option("--massif", type=_file, metavar="FILE", help="With --event: the log's file, instead of asking.")
@click.option("--seal", type=_file, metavar="FILE", help="With --massif: the signature over it.")
@click.option(
    "--tenant", callback=_tenant, metavar="UUID", help="To whom the records were served, if shared with you."
)
@arguments.as_json
@arguments.locating_options("log-key", "log-url", "url", "ca-file", "timeout", "profile", "config")
def command(
    paths: tuple[Path, ...],
    event: Path | None,
    massif: Path | None,
    seal: Path | None,
    tenant: str | None,
    as_json: bool,
    **given: str | None,
) -> None:
    """Find out whether events are committed to their tenant's transparency log, and who signed that.

    PATH is a file, an event or an asset on a mount; of a file, the events that carry its hash are looked at.
    BAG is an exported bag, which needs no network.

    No key is trusted by itself: name one with --log-key (a PEM or JWKS file), or --log-key datatrails for
    the two that DataTrails published.

    Exit status: 0 all are proven, 1 the log contradicts a record, 3 something could not be found out.
    """
    if (event is None) == (not paths):
        raise UsageError("give paths, or --event FILE; see 'attachfs prove --help'")
    if (massif is None) != (seal is None) or (massif is not None and event is None):
        raise UsageError("--massif and --seal belong together, and with --event")
    config = arguments.settings(given)
    sys.exit(run(config, paths, Files(event, massif, seal), tenant=tenant, as_json=as_json))
