"""The composition root: everything is made here, handed to what needs it, and taken down in reverse."""

import functools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pyfuse3
import trio

from attachfs.background import Background
from attachfs.blobs.download import PausePolicy
from attachfs.blobs.pins import Pins
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.config.permissions import require_own
from attachfs.config.settings import Config
from attachfs.errors import Unexpected, UsageError, first_of
from attachfs.fuse.deadlines import RequestDeadlines
from attachfs.fuse.entries import Ownership
from attachfs.fuse.fault_log import ErrorLog
from attachfs.fuse.inodes import InodeTable
from attachfs.fuse.operations import Filesystem
from attachfs.fuse.readahead import ReadAhead
from attachfs.ledger.view import Ledger
from attachfs.mount.custody import CustodyRecorder
from attachfs.mount.mountinfo import SUBTYPE, check_mountpoint
from attachfs.mount.origin import Origin, of_archive, of_service, pins_of
from attachfs.mount.reload import Reloader
from attachfs.mount.service_status import ServiceStatus
from attachfs.mount.sharing import Sharing, open_shared_cache, share
from attachfs.mount.signals import SignalHandler
from attachfs.mount.status import StatusReport
from attachfs.mount.systemd import Notifier
from attachfs.namespace.tree import Tree

log = logging.getLogger(__name__)

# Handlers at once. Each slow read occupies one, and the network has a limit of its own; pyfuse3's default
# of 99 would let a hundred slow reads hold up every stat.
_MAX_TASKS = 1024
_IDLE_TASKS = 8
# What the kernel asks for at a time when a program reads in order: with its 128 KiB, a quarter of the time of
# reading a large blob goes into asking. A FUSE connection takes up to 1 MiB.
_READ_AHEAD_KIB = 512
_TRYING = 1.0  # seconds that mounting waits for the ledger's first answer, at most


async def serve(
    config: Config,
    mountpoint: Path,
    ready: Callable[[], None],
    reload: Callable[[], Config] | None = None,
    log_place: str = "stderr",
) -> None:
    """Mount, call `ready` once the mount answers, and serve until it is unmounted or a signal comes.

    Args:
        config: the settings.
        mountpoint: an absolute path.
        ready: called once the mount answers.
        reload: reads the settings again, on SIGHUP.
        log_place: where the log goes, for the figures.

    Raises:
        UsageError: the mount point, the cache or the credentials cannot be used.
        Unexpected: the kernel refuses the mount.
    """
    kept = {
        "the cache": config.cache_dir if config.archive is None else None,
        "the archive": config.archive,
        "the token file": config.token_file,
        "the client secret file": config.client_secret_file,
        "the log file": config.log_file,
        "the custody log": config.custody_log,
        "the state directory": config.state_dir,
    }
    check_mountpoint(mountpoint, kept)
    _check_state_directory(config.state_dir)
    with ExitStack() as disk:
        cache = DiskCache(config.cache_dir, config.cache_size, config.cache_min_free)
        if config.archive is None:  # else nothing is put into it
            cache.start(f"the mount {mountpoint}")
            disk.callback(cache.close)
        pins = pins_of(config)
        disk.callback(pins.close)
        custody = None
        if config.custody_log is not None:
            custody = CustodyRecorder(config.custody_log, mountpoint, optional=config.custody_log_optional)
            custody.begin(config.url)
            disk.callback(custody.end)
        async with _filesystem(config, mountpoint, cache, pins, reload, custody, log_place) as mount:
            if config.archive is None:
                indexing = functools.partial(trio.to_thread.run_sync, cache.index, abandon_on_cancel=True)
                mount.tasks.part(
                    "the index of the cache", "what earlier mounts have cached may be fetched anew"
                ).start_soon(indexing)
            mount.tasks.keep_running(
                "trimming the kernel's entries", mount.filesystem.kernel.trim_dentries, mountpoint
            )
            if config.metrics is not None:
                from attachfs.mount import metrics  # takes time to import, and few want it

                listeners = await metrics.listen(config.metrics)
                mount.tasks.keep_running(
                    "serving metrics", metrics.serve_metrics, listeners, mount.control.report.as_dict
                )
            await _mounted(mount.filesystem, mount.control, config, mountpoint, ready)


class _Mount(NamedTuple):
    """What the mount process runs."""

    filesystem: Filesystem
    control: SignalHandler
    tasks: Background


@asynccontextmanager
async def _filesystem(
    config: Config,
    mountpoint: Path,
    cache: DiskCache,
    pins: Pins,
    reload: Callable[[], Config] | None,
    custody: CustodyRecorder | None,
    log_place: str,
) -> AsyncIterator[_Mount]:
    """Make every layer, each from those below it."""
    born = time.time_ns()
    # The tasks end before what they use is closed.
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        tasks = Background(nursery)
        shared = await stack.enter_async_context(open_shared_cache(config))
        if config.archive is None:
            origin = await of_service(config, stack, tasks)
        else:
            origin = of_archive(config.archive, stack)
        ledger = _make_ledger(config, origin, tasks)
        sharing = share(config, shared, origin.blobs, cache)
        blobs = _make_blobs(config, origin, ledger, sharing, cache, pins, tasks)

        def status() -> bytes:
            return report.as_json()  # which is made of the filesystem

        filesystem = _make_filesystem(
            config,
            Tree(ledger, origin.url, born),
            ledger,
            blobs,
            tasks,
            status=status,
            space=lambda: (0, 0) if config.archive is not None else cache.space(),
            observer=custody,
        )
        if sharing.uploader is not None:
            tasks.keep_running("filling the shared cache", sharing.uploader.run)
        if custody is not None:
            tasks.keep_running("bringing the custody log to the disk", custody.keep_synced)
        reloader = Reloader(
            config,
            mountpoint,
            reload,
            origin.log_in,
            client=origin.client,
            ledger=ledger,
            blobs=blobs,
            filesystem=filesystem,
            custody=custody,
        )
        report = StatusReport(
            mountpoint,
            log_place,
            born,
            lambda: reloader.config,
            origin=origin,
            ledger=ledger,
            blobs=blobs,
            cache=cache,
            filesystem=filesystem,
            shared=sharing.shared,
            custody=custody,
        )
        service = ServiceStatus(Notifier(), mountpoint, lambda: reloader.config, report.as_dict)
        await _first_answer(origin)
        try:
            yield _Mount(filesystem, SignalHandler(mountpoint, reloader, service, tasks, report), tasks)
        finally:
            filesystem.close()
            nursery.cancel_scope.cancel()


def _make_ledger(config: Config, origin: Origin, tasks: Background) -> Ledger:
    return Ledger(
        origin.records,
        tasks.part("a shared request", "those who wait for it get an error"),
        metadata_ttl=config.metadata_ttl,
        negative_ttl=config.negative_ttl,
        stale_ttl=config.stale_ttl,
        soft_timeout=config.soft_timeout,
        stored=origin.stored,
    )


def _make_blobs(
    config: Config,
    origin: Origin,
    ledger: Ledger,
    sharing: Sharing,
    cache: DiskCache,
    pins: Pins,
    tasks: Background,
) -> BlobStore:
    return BlobStore(
        ledger,
        sharing.source,
        cache,
        pins,
        tasks.part("a download", "those who wait for it get an error"),
        namespace=origin.namespace,
        verify=config.verify,
        strict_limit=config.strict_limit,
        scan_policy=config.scan_policy,
        pause=PausePolicy(),
        local=origin.local,
        on_admitted=sharing.on_admitted,
    )


def _make_filesystem(
    config: Config,
    tree: Tree,
    ledger: Ledger,
    blobs: BlobStore,
    tasks: Background,
    *,
    status: Callable[[], bytes],
    space: Callable[[], tuple[int, int]],
    observer: CustodyRecorder | None,
) -> Filesystem:
    deadlines = RequestDeadlines()
    tasks.keep_running("looking for killed callers", deadlines.watch)
    inodes = InodeTable()
    reading_ahead = tasks.part("reading ahead", "programs wait for what they ask for")
    return Filesystem(
        tree,
        blobs,
        inodes,
        ReadAhead(tree, ledger, blobs, reading_ahead, inodes.number, config.cache_size),
        deadlines,
        ErrorLog(trio.current_time),
        Ownership(config.uid, config.gid, config.umask),
        timeout=config.timeout,
        negative_ttl=config.negative_ttl,
        status=status,
        space=space,
        observer=observer,
    )


async def _first_answer(origin: Origin) -> None:
    """Wait a moment for the ledger's first answer; mount all the same if it does not come."""
    if origin.connected is None:
        return
    with trio.move_on_after(_TRYING) as trying:
        await origin.connected.wait()
    if trying.cancelled_caught:
        log.warning("mounting anyway: %s has not answered yet", origin.url)


async def _mounted(
    filesystem: Filesystem,
    control: SignalHandler,
    config: Config,
    mountpoint: Path,
    ready: Callable[[], None],
) -> None:
    source = config.source.replace("\\", r"\\").replace(",", r"\,")
    options = {"ro", "default_permissions", f"fsname={source}", f"subtype={SUBTYPE}"}
    if config.allow_other:
        options.add("allow_other")
    try:
        pyfuse3.init(filesystem, str(mountpoint), options)
    except RuntimeError as error:
        raise Unexpected(
            f"the kernel refuses to mount on {mountpoint}: is /dev/fuse there and open to you, is fuse3 "
            f"installed, and is user_allow_other set in /etc/fuse.conf if --allow-other is used?"
        ) from error
    if config.verify == "off":
        log.warning("--verify=off: bytes are served without being compared with the ledger")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.run, nursery.cancel_scope)
            nursery.start_soon(_announce, mountpoint, control, ready)
            await pyfuse3.main(_IDLE_TASKS, _MAX_TASKS)
            nursery.cancel_scope.cancel()
    except* OSError as group:
        raise Unexpected(f"the mount ended: {first_of(group)}") from group
    finally:
        # Whoever still waits is answered with an error; open files and working directories of others
        # do not keep the mount from leaving the tree.
        pyfuse3.close(unmount=True)
    log.info("%s is unmounted", mountpoint)


async def _announce(mountpoint: Path, control: SignalHandler, ready: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(_see, mountpoint, abandon_on_cancel=True)
    log.info("%s is mounted", mountpoint)
    ready()
    control.ready()


def _see(mountpoint: Path) -> None:
    """Wait until the mount answers, and have the kernel ask for more at a time, which only root may."""
    device = mountpoint.stat().st_dev
    with suppress(OSError):
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        setting.write_text(f"{_READ_AHEAD_KIB}\n", encoding="ascii")


def _check_state_directory(path: Path) -> None:
    """Refuse one that others may write, or that can never be there; one that is missing will be made."""
    try:
        require_own(path, path.stat(), "the state directory", "700")
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = f"the state directory {path} cannot be used ({error.strerror})"
        raise UsageError(f"{reason}: let XDG_STATE_HOME name another place") from error
