"""The composition root: everything is made here, handed to what needs it, and taken down in reverse."""

import functools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pyfuse3
import trio

from attachfs.background import Background
from attachfs.blobs.download import PausePolicy
from attachfs.blobs.pins import Pins
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.config.permissions import require_own
from attachfs.config.settings import Config
from attachfs.errors import Unexpected, first_of
from attachfs.fuse.deadlines import RequestDeadlines
from attachfs.fuse.entries import Ownership
from attachfs.fuse.fault_log import ErrorLog
from attachfs.fuse.inodes import InodeTable
from attachfs.fuse.operations import Filesystem
from attachfs.fuse.readahead import ReadAhead
from attachfs.ledger.view import Ledger
from attachfs.mount.custody import CustodyRecorder
from attachfs.mount.mountinfo import SUBTYPE, check_mountpoint
from attachfs.mount.origin import of_archive, of_service, pins_of
from attachfs.mount.reload import Reloader
from attachfs.mount.service_status import ServiceStatus
from attachfs.mount.sharing import open_shared_cache, share
from attachfs.mount.signals import SignalHandler
from attachfs.mount.status import status_json
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
    with suppress(FileNotFoundError):
        require_own(config.state_dir, config.state_dir.stat(), "the state directory", "700")
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
        async with _filesystem(config, mountpoint, cache, pins, reload, custody, log_place) as (
            filesystem,
            control,
            tasks,
        ):
            if config.archive is None:
                indexing = functools.partial(trio.to_thread.run_sync, cache.index, abandon_on_cancel=True)
                tasks.part(
                    "the index of the cache", "what earlier mounts have cached may be fetched anew"
                ).start_soon(indexing)
            tasks.keep_running("trimming the kernel's entries", filesystem.kernel.trim_dentries, mountpoint)
            if config.metrics is not None:
                from attachfs.mount import metrics  # takes time to import, and few want it

                listeners = await metrics.listen(config.metrics)
                tasks.keep_running(
                    "serving metrics", metrics.serve_metrics, listeners, lambda: json.loads(control.stats())
                )
            await _mounted(filesystem, control, config, mountpoint, ready)


@asynccontextmanager
async def _filesystem(
    config: Config,
    mountpoint: Path,
    cache: DiskCache,
    pins: Pins,
    reload: Callable[[], Config] | None,
    custody: CustodyRecorder | None,
    log_place: str,
) -> AsyncIterator[tuple[Filesystem, SignalHandler, Background]]:
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
        ledger = Ledger(
            origin.records,
            tasks.part("a shared request", "those who wait for it get an error"),
            metadata_ttl=config.metadata_ttl,
            negative_ttl=config.negative_ttl,
            stale_ttl=config.stale_ttl,
            soft_timeout=config.soft_timeout,
            stored=origin.stored,
        )
        sharing = share(config, shared, origin.blobs, cache)
        if sharing.uploader is not None:
            tasks.keep_running("filling the shared cache", sharing.uploader.run)
        blobs = BlobStore(
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
        deadlines = RequestDeadlines()
        tasks.keep_running("looking for killed callers", deadlines.watch)
        if custody is not None:
            tasks.keep_running("bringing the custody log to the disk", custody.keep_synced)

        def stats() -> bytes:
            uptime = round((time.time_ns() - born) / 1e9, 1)
            about = {"mountpoint": str(mountpoint), "uptime_s": uptime, "log": log_place}
            return status_json(
                reloader.config, about, origin, ledger, blobs, cache, filesystem, sharing.shared
            )

        inodes = InodeTable()
        tree = Tree(ledger, origin.url, born)
        filesystem = Filesystem(
            tree,
            blobs,
            inodes,
            ReadAhead(
                tree,
                ledger,
                blobs,
                tasks.part("reading ahead", "programs wait for what they ask for"),
                inodes.number,
                config.cache_size,
            ),
            deadlines,
            ErrorLog(trio.current_time),
            Ownership(config.uid, config.gid, config.umask),
            timeout=config.timeout,
            negative_ttl=config.negative_ttl,
            status=stats,
            space=lambda: (0, 0) if config.archive is not None else cache.space(),
            observer=custody,
        )
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
        status = ServiceStatus(Notifier(), mountpoint, lambda: reloader.config, stats)
        control = SignalHandler(mountpoint, reloader, status, tasks, stats)
        if origin.connected is not None:
            with trio.move_on_after(_TRYING) as trying:
                await origin.connected.wait()
            if trying.cancelled_caught:
                log.warning("mounting all the same: %s has not answered yet", origin.url)
        try:
            yield filesystem, control, tasks
        finally:
            filesystem.close()
            nursery.cancel_scope.cancel()


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
