"""`attachfs pins …`: review the hashes that were first seen, and deliberately release one.

A release takes effect in running mounts too: what they remember of a pin only ever confirms it, and a record
that differs is looked up in the database again. One that has just refused a file refuses it for a few more
seconds.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from attachfs.blobs.pins import Conflict, Pin, Pins
from attachfs.cli import arguments, output
from attachfs.cli.groups import Group
from attachfs.config.settings import Config
from attachfs.errors import UsageError
from attachfs.model import is_uuid

DATABASE = "pins.sqlite"


@contextlib.contextmanager
def _opened(config: Config) -> Iterator[Pins | None]:
    """Give the pins; None where none have been made, as looking would make a database."""
    path = config.state_dir / DATABASE
    damaged = list(config.state_dir.glob(f"{DATABASE}.damaged-*Z"))
    if not path.exists() and not damaged:
        yield None
        return
    pins = Pins(path)
    try:
        yield pins
    finally:
        pins.close()


def list_pins(config: Config, pattern: str, *, as_json: bool) -> int:
    """Print the pins whose key matches."""
    with _opened(config) as pins:
        found = [] if pins is None else pins.find(pattern)
    if as_json:
        for pin in found:
            output.say_json(_pin_json(pin))
    elif not found:
        output.note("no first-seen hash matches" if pattern else "no hashes have been pinned yet")
    else:
        output.print_table(
            ("key", "hash", "bytes", "first seen"),
            [(pin.key, pin.digest, pin.size, output.moment(pin.first_seen)) for pin in found],
            right=("bytes",),
        )
    return output.OK


def conflicts(config: Config, *, as_json: bool) -> int:
    """Print every difference ever seen; 1 if one of them still keeps its attachment from opening."""
    with _opened(config) as pins:
        found = [] if pins is None else pins.conflicts()
        standing = [] if pins is None else [stands(pins, conflict) for conflict in found]
    for conflict, still in zip(found, standing, strict=True):
        if as_json:
            output.say_json(_conflict_json(conflict, still=still))
            continue
        output.print_facts(
            [
                ("key", conflict.key),
                ("first seen as", f"{conflict.pinned} ({conflict.pinned_size} bytes)"),
                ("then seen as", f"{conflict.seen} ({conflict.seen_size} bytes)"),
                ("when", _when(conflict)),
                (
                    "now",
                    f"refused; to believe the new record: attachfs pins release {conflict.key}"
                    if still
                    else "released",
                ),
            ]
        )
        output.say("")
    if not as_json:
        count = output.count(len(found), "conflict")
        output.note(f"{count}, {sum(standing):,} not released" if found else "no conflicts")
    return output.DIFFERS if any(standing) else output.OK


def stands(pins: Pins, conflict: Conflict) -> bool:
    """Whether the hash that was first seen is still the one that is believed, and not released since."""
    pin = pins.get(conflict.key)
    if pin is None or (pin.digest, pin.size) != (conflict.pinned, conflict.pinned_size):
        return False
    return pin.first_seen <= conflict.last_when


def release(config: Config, keys: Sequence[str], *, sure: bool) -> int:
    """Forget pins, having shown them and asked, so that the next record of each is believed."""
    with _opened(config) as pins:
        if pins is None:
            raise UsageError("no hashes have been pinned yet")
        chosen = list({pin.key: pin for pin in (_named(pins, key) for key in keys)}.values())
        seen = pins.conflicts()
        for pin in chosen:
            output.note(pin.key)
            output.note(f"  first seen {output.moment(pin.first_seen)} as {pin}")
            for conflict in seen:
                if conflict.key == pin.key and conflict.pinned == pin.digest:
                    output.note(
                        f"  then seen {_when(conflict)} as {conflict.seen} ({conflict.seen_size} bytes)"
                    )
        if not sure:
            what = "this hash" if len(chosen) == 1 else f"these {len(chosen)} hashes"
            click.confirm(f"Forget {what}, and believe what the ledger records next?", abort=True, err=True)
        gone = sum(pins.release(pin.key) for pin in chosen)
    output.note(
        f"released {output.count(gone, 'pin')}; a mount that has refused the file tries it again in 5 seconds"
    )
    return output.OK


def _named(pins: Pins, key: str) -> Pin:
    pin = pins.get(key)
    if pin is not None:
        return pin
    # An attachment's path, also by name, or bare identity will do, if it is pinned for one ledger only.
    identity = key.rstrip("/").rpartition("/")[2]
    if not is_uuid(identity):
        with contextlib.suppress(OSError):
            identity = Path(key).readlink().name
    found = [p for p in pins.find(identity) if p.key.endswith(f"/{identity}")] if is_uuid(identity) else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{key} is pinned for several ledgers: {', '.join(p.key for p in found)}")
    raise UsageError(f"{key} is not pinned; see: attachfs pins list")


def _when(conflict: Conflict) -> str:
    first, last = output.moment(conflict.first_when), output.moment(conflict.last_when)
    return first if conflict.times == 1 else f"{conflict.times:,} times from {first} to {last}"


def _pin_json(pin: Pin) -> dict[str, object]:
    return {
        "key": pin.key,
        "hash": str(pin.digest),
        "size": pin.size,
        "first_seen": output.moment(pin.first_seen),
    }


def _conflict_json(conflict: Conflict, *, still: bool) -> dict[str, object]:
    return {
        "key": conflict.key,
        "pinned": str(conflict.pinned),
        "pinned_size": conflict.pinned_size,
        "seen": str(conflict.seen),
        "seen_size": conflict.seen_size,
        "first_when": output.moment(conflict.first_when),
        "last_when": output.moment(conflict.last_when),
        "times": conflict.times,
        "stands": still,
    }


@click.group("pins", cls=Group)
def command() -> None:
    """Review the hashes that were first seen, and release one so that another is believed."""


@command.command("list")
@click.argument("pattern", default="")
@arguments.as_json
def pins_list(pattern: str, as_json: bool) -> None:
    """List first-seen hashes.

    With PATTERN, only those whose key contains it, or matches it (with *, ? or [).
    """
    sys.exit(list_pins(arguments.settings({}), pattern, as_json=as_json))


@command.command("conflicts")
@arguments.as_json
def pins_conflicts(as_json: bool) -> None:
    """List attachments whose record has changed since. Exit status 1 if one of them is still refused."""
    sys.exit(conflicts(arguments.settings({}), as_json=as_json))


@command.command("release")
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@arguments.yes
def pins_release(keys: tuple[str, ...], yes: bool) -> None:
    """Forget first-seen hashes.

    What the ledger records next is then believed.

    KEY is as 'attachfs pins list' shows it, or an attachment's path or identity.
    """
    sys.exit(release(arguments.settings({}), keys, sure=yes))
