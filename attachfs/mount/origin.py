"""Where a mount's records and bytes come from: the service, what is kept of its answers, or an archive."""

import functools
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import trio

from attachfs.archive.blobs import BagBlobs, ReadOnlyPins
from attachfs.archive.folder import BagFolder
from attachfs.archive.manifest import check_declaration
from attachfs.archive.source import Archive, BagSource
from attachfs.background import Background
from attachfs.blobs.pins import Pins
from attachfs.blobs.source import BlobSource, LocalBlobs, UnreachableSource
from attachfs.config.settings import Config
from attachfs.errors import AttachfsError, BadAnswer, RateLimited, TimedOut, Unreachable, UsageError
from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.listings import Source
from attachfs.ledger.offline import OfflineSource, RecordingSource, StoredAnswers
from attachfs.mount import credentials
from attachfs.service import resolver
from attachfs.service.auth import Auth, ClientCredentials
from attachfs.service.client import Client, open_http
from attachfs.service.secret_file import Secret
from attachfs.service.try_out import try_out

log = logging.getLogger(__name__)

LogIn = Callable[[str, Path | Secret], Auth]


class Origin(NamedTuple):
    """Where records and bytes come from.

    `url` is the ledger's address, for what says where a file is from; `namespace` begins its pins' keys. An
    archive has all bytes on this machine (`local`), and neither a client nor a memory of answers. `stored` is
    what is served of that memory while the service does not answer.
    `connected` is set once the service was tried out; None: it is not.
    """

    records: Source
    blobs: BlobSource
    local: LocalBlobs | None
    url: str
    namespace: str
    client: Client | None = None
    memory: AnswerStore | None = None
    stored: StoredAnswers | None = None
    log_in: LogIn | None = None
    connected: trio.Event | None = None


async def of_service(config: Config, stack: AsyncExitStack, tasks: Background) -> Origin:
    """Return the service, or with `--offline` what is kept of its answers.

    Args:
        config: the settings.
        stack: closes what is opened.
        tasks: where connections are made and answers written down.

    Raises:
        UsageError: the credentials cannot be used.
    """
    resolver.install()
    http = await stack.enter_async_context(
        open_http(url=config.url, ca_file=config.ca_file, max_connections=config.max_connections)
    )

    def log_in(client_id: str, secret: Path | Secret) -> Auth:
        return ClientCredentials(client_id, secret, config.url, http, timeout=config.timeout)

    connected = None
    auth = credentials.choose(config, log_in)
    if not config.offline:
        connected = trio.Event()
        try:
            with trio.fail_after(config.timeout):
                # Credentials that cannot be used are told before the mount is there.
                authorization = await auth.header()
        except (Unreachable, TimedOut, RateLimited, BadAnswer) as error:
            log.warning("mounting anyway: %s", error.reason)  # a laptop may be without a network
            connected.set()
        except trio.TooSlowError:
            log.warning("mounting anyway: no token came within %g s", config.timeout)
            connected.set()
        else:
            trying = tasks.part("trying the ledger out", "the first request shows whether it answers")
            question = functools.partial(try_out, http, config.url, authorization)
            trying.start_soon(_try_out, question, connected)
    client = Client(http, config.url, auth, timeout=config.timeout, max_connections=config.max_connections)
    if not config.offline:
        tasks.keep_running("watching whether the ledger answers", client.watch)
    memory = AnswerStore(config.state_dir / f"{config.host_name}.sqlite")
    stack.push_async_callback(memory.aclose)
    tasks.keep_running("writing records down for --offline", memory.keep_writing)
    stored = StoredAnswers(memory)
    if config.offline:
        await memory.open()
    records = OfflineSource(stored) if config.offline else RecordingSource(client, memory)
    blobs = UnreachableSource() if config.offline else client
    kept = None if config.offline else stored  # an offline mount has nothing else to answer from anyway
    return Origin(records, blobs, None, config.url, config.host, client, memory, kept, log_in, connected)


async def _try_out(question: Callable[[], Awaitable[AttachfsError | None]], done: trio.Event) -> None:
    """Warn if the ledger cannot be used; it may come right by itself, so the mount is there all the same."""
    try:
        error = await question()
        if error is not None:
            log.warning("mounting anyway: %s", error.reason)
    finally:
        done.set()


def of_archive(bag: Path, stack: AsyncExitStack) -> Origin:
    """Return an exported bag.

    Raises:
        UsageError: it is none that can be mounted.
    """
    folder = BagFolder(bag)
    stack.callback(folder.close)
    check_declaration(folder)
    archive = Archive(folder)
    try:
        namespace = urlsplit(archive.url).netloc
    except ValueError as error:
        raise UsageError(f"{bag}: its report names an impossible ledger ({error})") from error
    return Origin(BagSource(archive), UnreachableSource(), BagBlobs(archive), archive.url, namespace)


def pins_of(config: Config) -> Pins:
    """Return what was first seen of attachments: an archive is compared with it, and adds nothing to it."""
    path = config.state_dir / "pins.sqlite"
    return Pins(path) if config.archive is None else ReadOnlyPins(path)
