"""The fault matrix: what a service, a proxy or an attacker may answer, and what a program then sees.

Every row is one fault, met through the real kernel over a real socket. While it lasts, an unrelated `stat`
is answered; afterwards the same mount serves a good file, has told one line, and holds nothing more.
"""

import concurrent.futures
import errno
import gzip
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mount.lane import Held, Lane, lane
from tests.mount.programs import KINDS, OPERATIONS, USUAL, outcome, read, read_event_file, stat
from tests.services.faulty_ledger import (
    PLACES,
    Case,
    Exchange,
    Script,
    at_first,
    at_place,
    body,
    chunked,
    serving,
    status,
    value,
)
from tests.services.threaded_ledger import identity
from tests.services.wrong_bodies import flipped

MiB = 2**20
TIMEOUT = 2  # seconds
SLACK = 5  # seconds, for a machine with other things to do; two timeouts more would be too long
PATIENT = (
    20  # seconds to give a mount where much is sent, so that its bounds end it and no slowness of the machine
)
LANES = 4  # mounts side by side
GROWTH = 96 * 1024  # KiB of memory that a mount may keep of a hundred and more faults
PEAK = 512 * 1024  # KiB it may ever have used
ONCE = (1, 1)
# What may pass is tried four times; a connection that may have been closed while idle once more.
AGAIN = (4, 4)
AGAIN_AND_RECONNECTED = (4, 5)
NO_STORM = (1, 20)


@dataclass(frozen=True)
class Fault:
    """A row: what goes wrong, in answer to which kind of request, and what then has to happen.

    `errno`: what the program gets, 0 for success. `requests`: the least and the most of that kind.
    `told`: is in the one line that is logged, "" where none is. `at_least`, `within`: seconds. `adjust`:
    changes what is recorded. `then`: looks at the outcome. `lines`: how many are logged, if not one.
    `timeout`: the mount's --timeout, in seconds.
    """

    name: str
    on: str
    script: Script | None
    errno: int = 0
    told: str = ""
    requests: tuple[int, int] = ONCE
    within: float = 0
    operation: str = ""
    size: int = 3000
    adjust: Callable[[Case], None] | None = None
    then: Callable[[Case, Any], None] | None = None
    lines: int = 1
    at_least: float = 0
    timeout: int = TIMEOUT


# -- rows: statuses --------------------------------------------------------------------------------

STATUSES: tuple[int, ...] = (
    204,
    206,
    300,
    301,
    302,
    303,
    304,
    305,
    307,
    308,
    400,
    401,
    402,
    403,
    404,
    405,
    406,
    408,
    409,
)
STATUSES += (410, 416, 418, 425, 431, 451, 500, 501, 502, 503, 504, 505, 511, 520, 599, 600, 999)
PASSING = (408, 500, 502, 503, 504)


def of_status(code: int, on: str) -> Fault:
    told = {
        401: "the ledger refuses the credentials (401)",
        403: "the access policy does not allow it (403)",
        404: "" if on != "events" else "does not have it (404)",
        206: "the service answered 206",
    }.get(code, f"the service answered {code}")
    if code in (301, 302, 303, 307, 308):
        told = "redirected to nowhere"
    return Fault(
        f"{code} on {on}",
        on,
        status(code),
        # To readdir(3), ENOENT is the end of a directory: a listing that is not there would be an empty one.
        errno.EIO
        if code == 404 and on == "events"
        else {404: errno.ENOENT, 401: errno.EACCES, 403: errno.EACCES}.get(code, errno.EIO),
        told,
        AGAIN if code in PASSING else ONCE,
    )


def statuses() -> Iterator[Fault]:
    for code, on in itertools.product(STATUSES, KINDS):
        if (code, on) != (206, "events"):  # there it means that there is more
            yield of_status(code, on)
    for code, on in itertools.product(PASSING, KINDS):
        yield Fault(f"{code} on the first {on}", on, at_first(status(code)), requests=(2, 2))
    for on in ("info", "blob"):
        yield Fault(f"503 thrice on {on}", on, at_first(status(503), 3), requests=(4, 4))
        yield Fault(
            f"503 with Retry-After on {on}",
            on,
            at_first(status(503, ("Retry-After", "1"))),
            requests=(2, 2),
            within=1,
        )
        yield Fault(
            f"503 with Retry-After beyond the timeout on {on}",
            on,
            status(503, ("Retry-After", "60")),
            errno.EIO,
            "the service answered 503",
        )
        yield Fault(f"100 before the answer on {on}", on, informed)
        yield Fault(
            f"a status of 0 on {on}", on, raw(b"HTTP/1.1 0 OK\r\n\r\n"), errno.EIO, "not HTTP", NO_STORM
        )
        yield Fault(
            f"no HTTP at all on {on}", on, raw(b"SSH-2.0-OpenSSH_9.2\r\n"), errno.EIO, "not HTTP", NO_STORM
        )
        yield Fault(
            f"an error with an endless body on {on}", on, endless_error, errno.EIO, "answered 400", within=1
        )
        yield Fault(
            f"an error that quotes control characters on {on}",
            on,
            lambda x: x.reply(400, b'{"error":"\\u001b[31m\\nred \\u202e"}'),
            errno.EIO,
            "\\x1b[31m\\nred",
        )
        yield Fault(
            f"an error that quotes the token on {on}",
            on,
            lambda x: x.reply(400, f"bad: {x.headers['authorization']}".encode()),
            errno.EIO,
            "[hidden]",
        )


def informed(x: Exchange) -> None:
    x.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    x.serve()


def raw(data: bytes) -> Script:
    def script(x: Exchange) -> None:
        x.send(data)
        x.cut()

    return script


def endless_error(x: Exchange) -> None:
    x.ends = True
    x.send(b"HTTP/1.1 400 Bad\r\n\r\n")
    while True:
        x.send(bytes(65536))


# -- rows: lengths, places, encodings --------------------------------------------------------------


def framed(change: Callable[[Exchange], bytes]) -> Script:
    """Send a head and a body made by hand, and end the connection."""

    def script(x: Exchange) -> None:
        x.send(b"HTTP/1.1 200 OK\r\n" + change(x))
        x.cut()

    return script


def length_of(data: bytes, length: int | str) -> bytes:
    return f"Content-Length: {length}\r\n\r\n".encode() + data


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FRAMES: dict[str, tuple[Callable[[Exchange], bytes], bool, bool]] = {
    # name: (head and body, whether a record is right all the same, whether a blob is)
    "no length": (lambda x: b"\r\n" + x.good.body, True, True),
    "no length and cut": (lambda x: b"\r\n" + x.good.body[:-7], False, False),
    "chunked": (lambda x: CHUNKED + chunked(x.good.body), True, True),
    "chunked in single bytes": (
        lambda x: CHUNKED + b"".join(chunked(bytes([b]), end=b"") for b in x.good.body) + b"0\r\n\r\n",
        True,
        True,
    ),
    "chunked and cut in a chunk": (lambda x: CHUNKED + chunked(x.good.body)[:-20], False, False),
    "chunked and cut between chunks": (lambda x: CHUNKED + chunked(x.good.body[:-9], end=b""), False, False),
    # All bytes came, and they are right.
    "chunked without an end": (lambda x: CHUNKED + chunked(x.good.body, end=b""), False, True),
    "chunks that are none": (lambda x: CHUNKED + b"zz\r\n" + x.good.body, False, False),
    "a length and chunks": (
        lambda x: b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(x.good.body),
        False,
        False,
    ),
    "one byte short": (lambda x: length_of(x.good.body[:-1], len(x.good.body) - 1), False, False),
    "one byte long": (lambda x: length_of(x.good.body + b"}", len(x.good.body) + 1), False, False),
    "less than announced": (lambda x: length_of(x.good.body[:-1], len(x.good.body)), False, False),
    "more than announced": (lambda x: length_of(x.good.body + b"more", len(x.good.body)), True, True),
    "nothing": (lambda _: length_of(b"", 0), False, False),
    "a negative length": (lambda x: length_of(x.good.body, -1), False, False),
    "a length that is none": (lambda x: length_of(x.good.body, "0x10"), False, False),
    "two lengths": (lambda x: b"Content-Length: 1\r\n" + length_of(x.good.body, 3000), False, False),
    "a length of 2^63": (lambda x: length_of(x.good.body, 2**63), False, False),
    "headers without an end": (lambda _: b"X-Filler: " + b"x" * 200_000, False, False),
    "a header that is none": (lambda x: b"no colon here\r\n" + length_of(x.good.body, 1), False, False),
}


def _asked(name: str, *, right: bool) -> tuple[int, int]:
    """How often something is asked for: twice, if something stands behind an answer on a used connection."""
    if name == "more than announced":
        return (1, 2)
    return ONCE if right and name != "chunked without an end" else NO_STORM


def lengths() -> Iterator[Fault]:
    for name, (change, record_is_right, blob_is_right) in FRAMES.items():
        for on, right in (("info", record_is_right), ("events", record_is_right), ("blob", blob_is_right)):
            yield Fault(
                f"{name} on {on}",
                on,
                framed(change),
                0 if right else errno.EIO,
                "" if right else "[EIO]",
                _asked(name, right=right),
                # A blob is taken up three times, after pauses of up to 0.5, 1 and 2 s.
                within=4 if on == "blob" and not right else 0,
            )
    for name in ("less than announced", "chunked and cut in a chunk", "chunked without an end"):
        for on in ("info", "events", "blob"):
            requests = (2, 3) if name == "chunked without an end" else (2, 2)
            yield Fault(f"{name} on the first {on}", on, at_first(framed(FRAMES[name][0])), requests=requests)


def places() -> Iterator[Fault]:
    everywhere = itertools.product(PLACES, ("events", "info", "blob"))
    # Before the head, in it and in the body for the other kinds of request.
    for where, on in [*everywhere, *itertools.product(PLACES[:5:2], ("asset", "event"))]:
        yield Fault(
            f"a stall {where} of {on}",
            on,
            at_place(where, Exchange.stall),
            errno.ETIMEDOUT,
            "within 2 s" if where in PLACES[2:] or on != "blob" else "no answer",
            within=TIMEOUT,
        )
    for where, on in itertools.product(PLACES, ("events", "info", "blob")):
        for name, end in (("reset", Exchange.reset), ("cut", Exchange.cut)):
            yield Fault(
                f"a {name} {where} of {on}",
                on,
                at_place(where, end),
                errno.EIO,
                "bro",
                AGAIN_AND_RECONNECTED if where in PLACES[:2] else NO_STORM,
                within=4,
            )
            yield Fault(
                f"a {name} {where} of the first {on}", on, at_first(at_place(where, end)), requests=(2, 2)
            )
    for on in ("events", "info", "blob"):
        yield Fault(f"a byte a second on {on}", on, snail, errno.ETIMEDOUT, "within 2 s", within=TIMEOUT)


STRANGER = b"<!doctype html><title>Log in to the network</title>"


def strangers() -> Iterator[Fault]:
    """Pages of a gateway's or a captive portal's: no answer of the service's, whatever their status."""
    for code, on in itertools.product((200, 401, 403, 404, 410, 503, 511), KINDS):

        def script(x: Exchange, code: int = code) -> None:
            x.reply(code, STRANGER, ("Content-Type", "text/html; charset=utf-8"))

        yield Fault(
            f"a stranger's page with {code} on {on}",
            on,
            script,
            errno.EIO if code in (410, 503, 511) or (code, on) == (200, "blob") else errno.EHOSTUNREACH,
            requests=NO_STORM if code in PASSING or (code, on) == (200, "blob") else ONCE,
            within=4 if on == "blob" else 0,
        )


def snail(x: Exchange) -> None:
    x.ends = True
    x.send(x.good.head())
    for one in x.good.body:
        if not x.paused(1):
            return
        x.send(bytes([one]))


def endless(x: Exchange) -> None:
    x.ends = True
    x.send(b"HTTP/1.1 200 OK\r\n" + CHUNKED)
    while True:
        x.send(chunked(b" " * 65536, end=b""))


def big(size: int, *, announced: bool) -> Script:
    """Send a JSON answer of this size."""

    def script(x: Exchange) -> None:
        head = b'{"events": [], "info": "'
        x.ends = True
        x.send(b"HTTP/1.1 200 OK\r\n" + (length_of(b"", size) if announced else b"\r\n") + head)
        for _ in range(size // MiB):
            x.send(b"x" * MiB)

    return script


def encodings() -> Iterator[Fault]:
    for on in ("info", "events", "blob"):
        for name, encoding, change in (
            ("gzip", "gzip", gzip.compress),
            ("a gzip bomb", "gzip", lambda _: gzip.compress(bytes(64 * MiB), 1)),
            ("truncated gzip", "gzip", lambda data: gzip.compress(data)[:-9]),
            ("br", "br", lambda data: data),
            ("deflate, twice", "deflate, deflate", lambda data: data),
            ("an unknown encoding", "\x7f", lambda data: data),
        ):

            def script(
                x: Exchange, change: Callable[[bytes], bytes] = change, encoding: str = encoding
            ) -> None:
                x.reply(200, change(x.good.body), ("Content-Encoding", encoding))

            if encoding != "\x7f":
                yield Fault(f"{name} on {on}", on, script, errno.EIO, "is encoded")

        def identity_said(x: Exchange) -> None:
            x.reply(200, x.good.body, ("Content-Encoding", "identity"))

        yield Fault(f"an encoding of identity on {on}", on, identity_said)
        yield Fault(
            f"an endless body on {on}", on, endless, errno.EIO, "", NO_STORM, within=8, timeout=PATIENT
        )
    yield Fault(
        "100 MiB of JSON on events", "events", big(100 * MiB, announced=True), errno.EIO, "longer than"
    )
    yield Fault(
        "100 MiB of JSON without a length on events",
        "events",
        big(100 * MiB, announced=False),
        errno.EIO,
        "longer than",
        within=8,
        timeout=PATIENT,
    )
    yield Fault(
        "30 MiB of JSON on events",
        "events",
        big(30 * MiB, announced=False),
        errno.EIO,
        "JSON",
        within=8,
        timeout=PATIENT,
    )
    yield Fault("2 MiB of JSON on info", "info", big(2 * MiB, announced=False), errno.EIO, "longer than")


# -- rows: JSON ------------------------------------------------------------------------------------

DEEP = 100_000
NOT_JSON: dict[str, Callable[[bytes], bytes]] = {
    "no bytes": lambda _: b"",
    "HTML": lambda _: b"<!doctype html><title>Please log in</title>",
    "a captive portal's redirect page": lambda _: b"<html><meta http-equiv=refresh content=0>",
    "truncated JSON": lambda data: data[:-2],
    "two JSON values": lambda data: data + data,
    "a JSON list": lambda data: b"[" + data + b"]",
    "a JSON string": lambda _: b'"ok"',
    "a JSON number": lambda _: b"12",
    "JSON null": lambda _: b"null",
    "NaN": lambda _: b'{"size": NaN, "events": NaN}',
    "single quotes": lambda data: data.replace(b'"', b"'"),
    "invalid UTF-8": lambda data: data.replace(b"identity", b"identi\xff\xfey"),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "a NUL in front": lambda data: b"\0" + data,
    "100,000 lists in each other": lambda _: b'{"events": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "100,000 objects in each other": lambda _: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "100,000 open lists": lambda _: b"[" * DEEP,
    "a number of 100,000 digits": lambda _: b'{"size": ' + b"9" * DEEP + b"}",
}
GOOD_JSON: dict[str, Callable[[bytes], bytes]] = {
    "lone surrogates": lambda data: data.replace(b"{", b'{"x": "\\u0041\\u0301", ', 1),
    "white space all around": lambda data: b" \n\t" + data + b"\r\n ",
    "duplicate keys, the last right": lambda data: data.replace(b"{", b'{"size": 5, "events": [], ', 1),
    "unknown keys": lambda data: data.replace(b"{", b'{"new": {"in": ["2031"]}, ', 1),
}


def changed(change: Callable[[bytes], bytes]) -> Script:
    return lambda x: x.reply(200, change(x.good.body), ("Content-Type", "application/json"))


def jsons() -> Iterator[Fault]:
    for (name, change), on in itertools.product(NOT_JSON.items(), ("events", "info", "asset")):
        yield Fault(
            f"{name} on {on}", on, changed(change), errno.EIO, "archivist" if on == "events" else "assets"
        )
    for (name, change), on in itertools.product(GOOD_JSON.items(), ("events", "info", "asset")):
        yield Fault(f"{name} on {on}", on, changed(change))
    for key, wrong in itertools.product(
        ("events",), ({}, "text", 7, True, [1], ["text"], [None], [[]], {"a": []})
    ):
        yield Fault(
            f"records that are {json.dumps(wrong)}",
            "events",
            value({key: wrong}),
            errno.EIO,
            "list of objects",
        )
    yield Fault("an empty object for a page", "events", value({}), errno.EIO, "has no 'events'")
    for name, wrong_token in (("a number", 7), ("a list", ["x"]), ("an object", {"x": 1}), ("true", True)):
        yield Fault(
            f"a page token that is {name}",
            "events",
            value({"events": [], "next_page_token": wrong_token}),
            errno.EIO,
            "next_page_token is not text",
        )
    for name, wrong_record in (
        ("attributes that are a list", {"attributes": []}),
        ("attributes that are null", {"attributes": None}),
        ("attributes that are text", {"attributes": "x"}),
        ("no attributes", {"attributes": {}}),
        ("a time that is none", {"at_time": "yesterday", "attributes": {}}),
        ("a time before 1970", {"at_time": "0001-01-01T00:00:00+23:59", "attributes": {}}),
        ("a time that is a number", {"at_time": 12, "attributes": {}}),
        ("a time in the year 9999", {"at_time": "9999-12-31T23:59:59Z", "attributes": {}}),
    ):
        yield Fault(
            f"an asset with {name}",
            "asset",
            None,
            adjust=lambda case, wrong=wrong_record: case.record.update(wrong),  # type: ignore[misc]
            then=lambda _, found: same(found, ["events"]),
        )
    for name, other in (("another asset's record", identity("another")), ("a record with no identity", None)):
        yield Fault(
            name,
            "asset",
            lambda x, other=other: x.json({"identity": other and f"assets/{other}", "attributes": {}}),  # type: ignore[misc]
            errno.EIO,
            "about another asset",
            lines=2,  # what was ignored, and what that meant
        )


def same(found: object, expected: object) -> None:
    assert found == expected


# -- rows: /info and bytes -------------------------------------------------------------------------


def sizes() -> Iterator[Fault]:
    not_sizes: tuple[object, ...] = (
        -1,
        2**63,
        2**64,
        1e308,
        "12",
        None,
        True,
        3000.5,
        [],
        {},
        "",
        "3000",
        -(2**63),
    )
    for size in not_sizes:
        yield Fault(
            f"a size of {json.dumps(size)}",
            "info",
            None,
            errno.EIO,
            "is not a file's size",
            adjust=lambda case, size=size: case.info.update(size=size),  # type: ignore[misc]
        )
    yield Fault(
        "no size",
        "info",
        None,
        errno.EIO,
        "is not a file's size",
        adjust=lambda case: case.info.pop("size") and None,
    )
    for size in (0, 1, 2999, 3001, 2**31, 2**32, 2**53 + 1, 2**63 - 1):
        yield Fault(
            f"a size of {size} where there are 3000 bytes is shown",
            "info",
            None,
            adjust=lambda case, size=size: case.info.update(size=size),  # type: ignore[misc]
            then=lambda case, found: same(found, case.info["size"]),
        )
        yield Fault(
            f"a size of {size} where there are 3000 bytes is not read",
            "blob",
            None,
            errno.EIO if size < 2**40 else errno.ENOSPC,
            "3000" if size < 2**40 else "room",
            adjust=lambda case, size=size: case.info.update(size=size),  # type: ignore[misc]
            requests=ONCE if size < 2**40 else (0, 0),
        )


def infos() -> Iterator[Fault]:
    digest = "ab" * 32
    for name, hash_of, told in (
        ("no hash", None, "no hash is recorded"),
        ("a hash that is a list", [], "no hash is recorded"),
        ("an empty hash", {"alg": "SHA256", "value": ""}, "no hash is recorded"),
        ("no algorithm", {"value": digest}, "no hash is recorded"),
        ("an unknown algorithm", {"alg": "CRC32", "value": "abcd1234"}, "not known"),
        ("MD5", {"alg": "MD5", "value": "ab" * 16}, "not known"),
        ("a hash that is too short", {"alg": "SHA256", "value": digest[:-1]}, "malformed"),
        ("a hash that is not hexadecimal", {"alg": "SHA256", "value": "zz" * 32}, "malformed"),
        ("a hash with the wrong algorithm", {"alg": "SHA512", "value": digest}, "malformed"),
    ):
        yield Fault(
            f"{name} is shown",
            "info",
            None,
            adjust=lambda case, wrong=hash_of: case.info.update(hash=wrong),  # type: ignore[misc]
        )
        yield Fault(
            f"{name} is not read",
            "blob",
            None,
            errno.EIO,
            told,
            (0, 0),
            adjust=lambda case, wrong=hash_of: case.info.update(hash=wrong),  # type: ignore[misc]
        )
    for spelling in ("SHA256", "sha256", "SHA-256", "Sha_256"):
        yield Fault(
            f"the algorithm spelt {spelling}",
            "blob",
            None,
            adjust=lambda case, alg=spelling: case.info["hash"].update(alg=alg),  # type: ignore[misc]
        )
    yield Fault(
        "the hash in capitals",
        "blob",
        None,
        adjust=lambda case: case.info["hash"].update(value=case.digest.upper()),
    )
    for name, said in (
        ("another attachment's identity", f"blobs/{identity('another')}"),
        ("an identity with ..", "blobs/../../etc/passwd"),
        ("an identity that is a number", 7),
    ):
        yield Fault(
            f"an /info with {name}",
            "info",
            None,
            errno.EIO,
            "not this attachment",
            adjust=lambda case, said=said: case.info.update(identity=said),  # type: ignore[misc]
        )
    yield Fault(
        "a scan that found something",
        "blob",
        None,
        errno.EPERM,
        "Win.Test.EICAR",
        (0, 0),
        adjust=lambda case: case.info.update(
            scanned_status="SCANNED_BAD", scanned_bad_reason="Win.Test.EICAR"
        ),
    )
    yield Fault(
        "attributes with hostile text",
        "info",
        None,
        operation="attributes",
        adjust=lambda case: case.info.update({"x": "a\nb\x1b[0m", "é\u202e": "y", "n" * 300: "long"}),
        then=lambda _, found: same(found["user.attachment.x"], b"a\nb\x1b[0m"),
    )


def bytes_() -> Iterator[Fault]:
    yield Fault(
        "an error page of the right length with status 200",
        "blob",
        body(b"<html>".ljust(3000)),
        errno.EBADMSG,
        "do not match the record",
    )
    yield Fault(
        "right bytes under a wrong record",
        "blob",
        None,
        errno.EBADMSG,
        "two records differ",
        (0, 0),
        adjust=lambda case: case.info["hash"].update(value="ab" * 32),
    )
    yield Fault(
        "two records that differ from the bytes",
        "blob",
        None,
        errno.EBADMSG,
        "do not match the record",
        adjust=everything_wrong,
    )
    yield Fault(
        "a wrong bit in an event's file",
        "blob",
        lambda x: x.reply(200, flipped(x.good.body, 7)),
        errno.EBADMSG,
        "do not match the record",
        operation="read event file",
    )
    for name, wrong in (
        ("from elsewhere", "bytes 5-2999/3000"),
        ("of another length", "bytes 1500-2998/2999"),
        ("backwards", "bytes 1500-7/3000"),
        ("that is none", "bytes x"),
    ):
        yield Fault(
            f"a resumed part {name}",
            "blob",
            resumed(lambda x, wrong=wrong: x.reply(206, x.good.body, ("Content-Range", wrong))),  # type: ignore[misc]
            errno.EIO,
            "206",
            (2, 2),
        )
    yield Fault("a resumed part that is right", "blob", resumed(Exchange.serve), requests=(2, 2))
    yield Fault(
        "a resumed part answered with the whole",
        "blob",
        resumed(lambda x: x.reply(200, x.ledger.cases[x.asset].content)),
        requests=(2, 2),
    )
    yield Fault(
        "a resumed part answered with another whole",
        "blob",
        resumed(lambda x: x.reply(200, b"z" * 3000)),
        errno.EIO,
        "other bytes the second time",
        (2, 2),
    )
    yield Fault(
        "a resumed part with other bytes",
        "blob",
        resumed(lambda x: x.reply(206, bytes(1500), ("Content-Range", "bytes 1500-2999/3000"))),
        errno.EBADMSG,
        "do not match the record",
        (2, 2),
    )
    yield Fault(
        "a resumed part answered with 416, then the whole",
        "blob",
        resumed(lambda x: x.reply(416) if x.number == 2 else x.serve()),
        requests=(3, 3),
        within=1,
    )
    yield Fault("a resumed part answered with 404", "blob", resumed(status(404)), errno.ENOENT, "", (2, 2))
    yield Fault("a resumed part answered with 403", "blob", resumed(status(403)), errno.EACCES, "403", (2, 2))


def resumed(second: Script) -> Script:
    """Break off in the middle, and then answer so."""

    def script(x: Exchange) -> None:
        (at_place("halfway", Exchange.cut) if x.number == 1 else second)(x)

    return script


def everything_wrong(case: Case) -> None:
    case.info["hash"]["value"] = "ab" * 32
    case.record["attributes"]["photo"]["arc_blob_hash_value"] = "ab" * 32


# -- rows: paging ----------------------------------------------------------------------------------


def event_id(case: Case, number: int) -> str:
    return identity(f"{case.name}/event/{number}")


def pages(*tokens: str, each: int = 2, statuses: tuple[int, ...] = (200,), shared: int = 0) -> Script:
    """Serve pages of events, each leading to the next token; `shared`: as many as they overlap."""

    def script(x: Exchange) -> None:
        case = x.ledger.cases[x.asset]
        index = ("", *tokens).index(x.page_token)
        first = index * (each - shared)
        records = [case.event_record(event_id(case, n)) for n in range(first, first + each)]
        answer: dict[str, object] = {"events": records}
        if index < len(tokens):
            answer["next_page_token"] = tokens[index]
        x.json(answer, statuses[min(index, len(statuses) - 1)])

    return script


def all_of(count: int) -> Callable[[Case, Any], None]:
    """Check that a listing shows each of the first `count` events, once."""
    return lambda case, found: same(found, sorted(event_id(case, n) for n in range(count)))


def circle(*tokens: str) -> Script:
    """Serve pages that lead from token to token for ever."""

    def script(x: Exchange) -> None:
        following = tokens[(tokens.index(x.page_token) + 1) % len(tokens)] if x.page_token else tokens[0]
        x.json({"events": [], "next_page_token": following})

    return script


def paging() -> Iterator[Fault]:
    odd = ("a b+c&page_token=x#?%2F", "é\u4e2d", "\x00\n\r", "=" * 300, "null", "0", " ")
    yield Fault("one page", "events", pages(), then=all_of(2))
    yield Fault("three pages", "events", pages("b", "c"), requests=(3, 3), then=all_of(6))
    yield Fault(
        "pages with 206 until the last",
        "events",
        pages("b", "c", statuses=(206, 206, 200)),
        requests=(3, 3),
        then=all_of(6),
    )
    yield Fault("a page with 206 and no token", "events", pages(statuses=(206,)), then=all_of(2))
    yield Fault("tokens with odd characters", "events", pages(*odd), requests=(8, 8), then=all_of(16))
    yield Fault("pages that overlap", "events", pages("b", "c", shared=1), requests=(3, 3), then=all_of(4))
    yield Fault(
        "more records than were asked for", "events", pages("b", each=700), requests=(2, 2), then=all_of(1400)
    )
    yield Fault(
        "300 pages",
        "events",
        pages(*(f"t{n}" for n in range(299)), each=1),
        requests=(300, 300),
        within=PATIENT - SLACK,
        then=all_of(300),
        timeout=PATIENT,
    )
    yield Fault("an empty page in between", "events", empty_between, requests=(3, 3), then=all_of(2))
    yield Fault("null for records", "events", value({"events": None, "next_page_token": ""}), then=all_of(0))
    yield Fault("a null token", "events", value({"events": [], "next_page_token": None}), then=all_of(0))
    yield Fault("no records, but a token's key", "events", value({"next_page_token": ""}), then=all_of(0))
    yield Fault("a listing that shifts between pages", "events", shifting, requests=(2, 2), then=nothing_lost)
    for length in (1, 2, 3, 50):
        tokens = tuple(f"t{n}" for n in range(length))
        yield Fault(
            f"a circle of {length} page tokens",
            "events",
            circle(*tokens),
            errno.EIO,
            "circles",
            (length + 1, length + 1),
            timeout=PATIENT,
        )
    yield Fault(
        "new page tokens for ever",
        "events",
        lambda x: x.json({"events": [], "next_page_token": f"t{x.number}"}),
        errno.ETIMEDOUT,
        "within 2 s",
        (2, 10_000),
        within=TIMEOUT,
    )
    yield Fault(
        "a page token of 100 KiB",
        "events",
        value({"events": [], "next_page_token": "x" * 102_400}),
        errno.EIO,
        "absurdly long",
    )
    for code in (500, 404, 403, 200):
        yield Fault(
            f"{code if code != 200 else 'rubbish'} on the second page",
            "events",
            second_page(status(code) if code != 200 else body(b"<html>")),
            {403: errno.EACCES}.get(code, errno.EIO),
            {500: "answered 500", 404: "404", 403: "403", 200: "JSON"}[code],
            (5, 5) if code == 500 else (2, 2),
        )
    yield Fault(
        "500 once on the second page",
        "events",
        lambda x: x.reply(500) if x.number == 2 else pages("b")(x),
        requests=(3, 3),
        then=all_of(4),
    )
    yield Fault(
        "a stall on the second page",
        "events",
        second_page(Exchange.stall),
        errno.ETIMEDOUT,
        "within 2 s",
        (2, 2),
        within=TIMEOUT,
    )


def second_page(script: Script) -> Script:
    return lambda x: script(x) if x.page_token else pages("b")(x)


def empty_between(x: Exchange) -> None:
    case = x.ledger.cases[x.asset]
    index = ("", "b", "c").index(x.page_token)
    records = {0: [event_id(case, 0)], 1: [], 2: [event_id(case, 1)]}[index]
    x.json(
        {
            "events": [case.event_record(one) for one in records],
            "next_page_token": {0: "b", 1: "c", 2: ""}[index],
        }
    )


def shifting(x: Exchange) -> None:
    """Let a new record come in at the front between the two pages."""
    case = x.ledger.cases[x.asset]
    numbers = (1, 2, 3) if not x.page_token else (3, 4, 5)
    x.json(
        {
            "events": [case.event_record(event_id(case, n)) for n in numbers],
            "next_page_token": "" if x.page_token else "b",
        }
    )


def nothing_lost(case: Case, found: list[str]) -> None:
    assert found == sorted(event_id(case, n) for n in range(1, 6))


# -- rows: identities and names --------------------------------------------------------------------

U = identity("hostile")
HOSTILE: dict[str, object] = {
    "with ../": f"blobs/../{U}",
    "that is ..": "..",
    "that is .": ".",
    "of slashes": "//",
    "with %2e%2e%2f": f"blobs/%2e%2e%2f{U}",
    "with //host": f"//elsewhere.example/{U}",
    "with https://host/": f"https://elsewhere.example/{U}",
    "with file://": f"file:///{U}",
    "with a backslash": f"blobs\\{U}",
    "with a question mark": f"blobs/{U}?x=1",
    "with a number sign": f"blobs/{U}#x",
    "with an at sign": f"user@blobs/{U}",
    "with a NUL": f"blobs/{U}\0",
    "with a newline": f"blobs/{U}\n",
    "with a space": f"blobs/ {U}",
    "in upper case": f"blobs/{U.upper()}",
    "with non-ASCII digits": "blobs/" + U.translate({ord("0") + n: 0x0660 + n for n in range(10)}),
    "with a full-width slash": f"blobs\uff0f{U}",
    "with two prefixes": f"blobs/v1/{U}",
    "that is an asset's": f"assets/{U}",
    "that is a public asset's": f"publicassets/{U}",
    "on another asset": f"assets/{identity('another')}/{U}",
    "without hyphens": "blobs/" + U.replace("-", ""),
    "in braces": f"blobs/{{{U}}}",
    "with a urn": f"urn:uuid:{U}",
    "cut short": f"blobs/{U[:-1]}",
    "with more behind": f"blobs/{U}0",
    "of 4,096 bytes": "blobs/" + "a" * 4096,
    "that is empty": "",
    "that is a number": 7,
    "that is a list": [U],
    "that is null": None,
    "that is an object": {"identity": U},
}
GOOD_IDENTITIES = ("blobs/{}", "attachments/{}", "blobsV1/{}", "{}")
NAMES: dict[str, str] = {
    "with a slash": "a/b",
    "that is empty": "",
    "that is .": ".",
    "that is ..": "..",
    "with a NUL": "a\0b",
    "with a newline": "a\nb",
    "with an escape": "\x1b]0;owned\x07",
    "with bidirectional marks": "gpj.\u202eexe",
    "of 255 bytes": "n" * 255,
    "of 256 bytes": "n" * 256,
    "of 4,096 bytes": "n" * 4096,
    "in NFC": "\u00e9",
    "in NFD": "e\u0301",
    "that is CON": "CON",
}


def identities() -> Iterator[Fault]:
    for name, said in HOSTILE.items():

        def add(case: Case, said: object = said) -> None:
            case.record["attributes"]["bad"] = {**case.entry(U), "arc_blob_identity": said}

        def in_event(x: Exchange, said: object = said) -> None:
            case = x.ledger.cases[x.asset]
            bad = {**case.entry(U), "arc_blob_identity": said}
            record = case.event_record()
            record["event_attributes"]["bad"] = bad
            x.json(record)

        yield Fault(
            f"an attachment's identity {name}",
            "asset",
            None,
            told="ignored an attachment whose identity is",
            adjust=add,
            then=lambda case, found: same(found, sorted(["events", case.blob])),
        )
        yield Fault(
            f"an attachment's identity {name}, on an event",
            "event",
            in_event,
            told="ignored an attachment whose identity is",
            then=lambda case, found: same(found, [case.event_blob]),
        )

        def among_events(x: Exchange, said: object = said) -> None:
            case = x.ledger.cases[x.asset]
            x.json({"events": [{**case.event_record(), "identity": said}, case.event_record()]})

        yield Fault(
            f"an event's identity {name}",
            "events",
            among_events,
            told="ignored an event whose identity is",
            then=lambda case, found: same(found, [case.event]),
        )
    yield Fault(
        "another asset's event in the listing",
        "events",
        lambda x: x.json(
            {"events": [{"identity": f"assets/{U}/events/{U}"}, x.ledger.cases[x.asset].event_record()]}
        ),
        told="ignored an event whose identity is",
        then=lambda case, found: same(found, [case.event]),
    )
    for form in GOOD_IDENTITIES:

        def respell(case: Case, form: str = form) -> None:
            case.record["attributes"]["photo"]["arc_blob_identity"] = form.format(case.blob)

        yield Fault(
            f"an attachment's identity as {form.format('<uuid>')}",
            "asset",
            None,
            adjust=respell,
            then=lambda case, found: same(found, sorted(["events", case.blob])),
        )
    for name, said in NAMES.items():

        def rename(case: Case, said: str = said) -> None:
            case.record["attributes"]["arc_display_name"] = said
            case.record["attributes"]["photo"]["arc_file_name"] = said
            case.record["attributes"]["photo"]["arc_display_name"] = said

        yield Fault(
            f"a name {name}",
            "asset",
            None,
            adjust=rename,
            then=lambda case, found: same(found, sorted(["events", case.blob])),
        )


def shapes() -> Iterator[Fault]:
    """Attachments as they were recorded from 2019 on."""

    def reshape(shape: Callable[[Case], dict[str, Any]]) -> Callable[[Case], None]:
        return lambda case: case.record.update(attributes=shape(case))

    for name, shape in (
        ("as objects in a list", lambda case: {"arc_attachments": [case.entry(case.blob)]}),
        (
            "in the oldest form",
            lambda case: {
                "arc_attachments": [
                    {
                        "arc_display_name": "a picture",
                        "arc_attachment_identity": f"blobs/{case.blob}",
                        "arc_hash_alg": "sha256",
                        "arc_hash_value": case.digest,
                    }
                ]
            },
        ),
        ("in a list under a name", lambda case: {"pictures": [case.entry(case.blob), "text", 7, None]}),
        ("under several names", lambda case: {"a": case.entry(case.blob), "b": case.entry(case.blob)}),
        ("without a hash", lambda case: {"a": {**case.entry(case.blob), "arc_blob_hash_value": None}}),
        (
            "beside strings and numbers",
            lambda case: {"n": 7, "s": "x", "p": case.entry(case.blob), "l": [[]]},
        ),
    ):
        yield Fault(
            f"attachments {name}",
            "asset",
            None,
            operation="ls",
            adjust=reshape(shape),
            then=lambda case, found: same(found, sorted(["events", case.blob])),
        )
        yield Fault(f"attachments {name}, read", "blob", None, adjust=reshape(shape))


# -- rows: 429 and redirects -----------------------------------------------------------------------

RESET, RETRY = "Archivist-Rate-Limit-Reset", "Retry-After"
THEN, LATER = "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:01 GMT"
LIMITS: dict[str, tuple[tuple[tuple[str, str], ...], float]] = {
    # name: (headers, seconds that have to pass)
    "nothing": ((), 0.5),
    "fractions of a second": (((RESET, "0.75"),), 0.75),
    "seconds": (((RETRY, "1"),), 1),
    "seconds in an exponent": (((RESET, "1e0"),), 1),
    "blanks around the seconds": (((RESET, " 1.0 "),), 1),
    "a date": ((("Date", THEN), (RETRY, LATER)), 1),
    "a past date": ((("Date", LATER), (RETRY, THEN)), 0.5),
    "a date on a clock that is years off": (((RETRY, "Tue, 01 Jan 2069 00:00:00 GMT"),), 0.5),
    "a date that is none": (((RETRY, "Mon, 32 Foo 2024 99:00:00 GMT"),), 0.5),
    "zero": (((RETRY, "0"),), 0.5),
    "zero in both headers": (((RETRY, "0"), (RESET, "0.0")), 0.5),
    "minus one": (((RETRY, "-1"), (RESET, "-1")), 0.5),
    "1e9": (((RESET, "1e9"),), 0.5),
    "1e999": (((RESET, "1e999"),), 0.5),
    "nan": (((RESET, "nan"), (RETRY, "nan")), 0.5),
    "inf": (((RESET, "inf"),), 0.5),
    "garbage": (((RESET, "soon"), (RETRY, "later, perhaps")), 0.5),
    "an empty value": (((RESET, ""), (RETRY, "")), 0.5),
    "hexadecimal": (((RETRY, "0x10"),), 0.5),
    "non-ASCII digits": (((RETRY, "\u00b9"),), 0.5),
    "a thousand digits": (((RETRY, "9" * 1000),), 0.5),
    "both headers, the same": (((RETRY, "1"), (RESET, "1.0")), 1),
    "both headers, disagreeing": (((RETRY, "0"), (RESET, "1.0")), 1),
    "both headers, one of them garbage": (((RETRY, "1"), (RESET, "nan")), 1),
}


def limits() -> Iterator[Fault]:
    for (name, (headers, _)), on in itertools.product(LIMITS.items(), ("info", "blob")):
        yield Fault(
            f"429 with {name} on the first {on}",
            on,
            at_first(status(429, *headers)),
            told="limits the rate",
            requests=(2, 2),
            within=2,
            at_least=LIMITS[name][1],
        )
    for on in ("asset", "events", "event"):
        yield Fault(
            f"429 on the first {on}",
            on,
            at_first(status(429)),
            told="limits the rate",
            requests=(2, 2),
            within=1,
        )


def to(location: str, code: int = 302) -> Script:
    return lambda x: x.reply(code, b"", ("Location", location))


def elsewhere(code: int) -> Script:
    """Redirect to the same path on another host."""

    def script(x: Exchange) -> None:
        assert x.ledger.elsewhere is not None
        x.reply(code, b"", ("Location", f"{x.ledger.elsewhere.url}{x.target}"))

    return script


def elsewhere_answers(answer: Script) -> Script:
    def script(x: Exchange) -> None:
        assert x.ledger.elsewhere is not None
        x.ledger.elsewhere.scripts[x.kind, x.asset] = answer
        elsewhere(307)(x)

    return script


def and_back(x: Exchange) -> None:
    if x.number > 1:
        x.serve()  # as far as its header allows
        return
    assert x.ledger.elsewhere is not None
    here = f"{x.ledger.url}{x.target}"
    x.ledger.elsewhere.scripts[x.kind, x.asset] = to(here)
    elsewhere(302)(x)


def redirects() -> Iterator[Fault]:
    for code, on in itertools.product((301, 302, 303, 307, 308), ("asset", "events", "info", "blob")):
        yield Fault(f"{code} to another host without the token, on {on}", on, elsewhere(code))
    for name, location in (
        ("a path", "{target}"),
        ("a path with a query", "{target}?again=1"),
        ("a relative path", "./{last}?again=1"),
        ("a whole address", "{url}{target}?again=1"),
        ("an address with a fragment", "{url}{target}#there"),
    ):

        def here(x: Exchange, location: str = location) -> None:
            if x.number > 1:
                x.serve()
            else:
                last = x.path.rpartition("/")[2]
                to(location.format(target=x.target, url=x.ledger.url, last=last))(x)

        yield Fault(f"a redirect to {name} on the same host, with the token", "blob", here, requests=(2, 2))
    yield Fault("a redirect to another host and back", "blob", and_back, errno.EACCES, "another host", (2, 2))
    yield Fault(
        "redirects in a circle", "blob", lambda x: to(x.target)(x), errno.EIO, "more than 3 redirects", (4, 4)
    )
    for name, location in (
        ("a file", "file:///etc/passwd"),
        ("a script", "javascript:alert(1)"),
        ("another scheme", "ftp://127.0.0.1/x"),
        ("a host alone", "//"),
        ("an address with a password", "http://user:pw@127.0.0.1/x"),
        ("an address with a backslash", "http://127.0.0.1\\@elsewhere/x"),
        ("an address with a blank", "http://127.0.0.1/a b"),
        ("an impossible port", "http://127.0.0.1:99999/"),
        ("port 0", "http://127.0.0.1:0/"),
        ("a scheme alone", "http:"),
        ("an address of 100 KiB", "/" + "x" * 102_400),
        ("non-ASCII", "http://\xe9/"),
    ):
        yield Fault(f"a redirect to {name}", "blob", to(location), errno.EIO, "[EIO]", NO_STORM)
    for code, number, told in (
        (404, errno.EIO, "answered 404"),
        (401, errno.EACCES, "another host"),
        (403, errno.EACCES, "403"),
        (500, errno.EIO, "answered 500"),
    ):
        yield Fault(
            f"{code} from another host is not ours",
            "blob",
            elsewhere_answers(status(code)),
            number,
            told,
            AGAIN if code == 500 else ONCE,
        )
    yield Fault(
        "wrong bytes from another host",
        "blob",
        elsewhere_answers(body(b"y" * 3000)),
        errno.EBADMSG,
        "do not match the record",
    )


MATRIX = [
    *statuses(),
    *lengths(),
    *places(),
    *strangers(),
    *encodings(),
    *jsons(),
    *sizes(),
    *infos(),
    *bytes_(),
    *paging(),
    *identities(),
    *shapes(),
    *limits(),
    *redirects(),
]


# -- the tests -------------------------------------------------------------------------------------


def meet(fault: Fault, mounted: Lane) -> None:
    """Let it happen, and look at all that has to hold."""
    case = Case(fault.name, fault.size)
    if fault.adjust is not None:
        fault.adjust(case)
    mounted.ledger.add(case, **({fault.on: fault.script} if fault.script else {}))
    unrelated = mounted.fresh()
    if fault.on == "asset":  # the kernel looks up the names in one directory one after another
        (mounted.point / "assets" / unrelated.asset).stat()
    operation = OPERATIONS[fault.operation or USUAL[fault.on]]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(outcome, operation, mounted.point, case)
        running.add_done_callback(lambda _: mounted.ledger.poke())
        mounted.ledger.wait_for(lambda: running.done() or mounted.ledger.count(fault.on, case) > 0)
        began = time.monotonic()
        assert (mounted.point / unrelated.path).stat().st_size == len(unrelated.content)
        assert time.monotonic() - began < TIMEOUT
        number, found, took = running.result()
    assert errno.errorcode.get(number) == errno.errorcode.get(fault.errno)
    assert fault.at_least <= took < fault.within + SLACK
    assert fault.requests[0] <= mounted.ledger.count(fault.on, case) <= fault.requests[1]
    mounted.serves_a_good_file(unrelated)
    # Where the bytes of an absurd size would go is told apart.
    told = [line for line in mounted.log.told(case.asset) if "is read through a temporary file" not in line]
    if fault.told or fault.errno not in (0, errno.ENOENT):
        assert len(told) == fault.lines, told
        assert fault.told in told[-1]
    else:
        assert not told
    if number == 0 and operation in (read, read_event_file):
        assert found == case.content
    if number == 0 and operation is stat and fault.then is None:
        assert found == len(case.content)
    if fault.then is not None:
        fault.then(case, found)


Outcomes = dict[str, concurrent.futures.Future[None]]


def drive(base: Path, faults: list[Fault], outcomes: Outcomes, stop: threading.Event) -> None:
    """Meet faults of one timeout in turn in one mount; at the end it holds what it held at the beginning."""
    try:
        with (
            serving() as elsewhere,
            lane(base, f"--timeout={faults[0].timeout}", "--cache-size=64M") as mounted,
        ):
            mounted.ledger.elsewhere = elsewhere
            elsewhere.cases = mounted.ledger.cases
            before = mounted.held()
            for fault in faults:
                if stop.is_set():
                    break
                try:
                    meet(fault, mounted)
                except BaseException as error:  # noqa: BLE001 - told by the fault's test
                    outcomes[fault.name].set_exception(error)
                else:
                    outcomes[fault.name].set_result(None)
            assert not any(seen.authorization for seen in elsewhere.seen)
            elsewhere.drop()
            holds_no_more(before, mounted.held())
            peak = int(mounted.process_file("status").split("VmHWM:")[1].split()[0])
            assert peak < PEAK
    finally:
        for fault in faults:
            outcomes[fault.name].cancel()  # if it was not met


def holds_no_more(before: Held, after: Held) -> None:
    assert len(after.open_files) <= len(before.open_files), set(after.open_files) ^ set(before.open_files)
    for figure in ("inodes", "open_files", "open_directories", "downloading"):
        assert after.status[figure] <= before.status[figure] + 1, figure
    assert after.status["requests"]["in_flight"] == after.status["requests"]["waiting"] == 0
    assert after.rss - before.rss < GROWTH


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Meet all faults that are asked for, in several mounts side by side: most of it is waiting."""
    tests = (getattr(item, "callspec", None) for item in request.session.items)
    wanted = [test.params["fault"] for test in tests if test is not None and "fault" in test.params]
    wanted = [fault for fault in wanted if isinstance(fault, Fault)]
    found: Outcomes = {fault.name: concurrent.futures.Future() for fault in wanted}
    stop = threading.Event()
    patient = [fault for fault in wanted if fault.timeout == PATIENT]
    usual = [fault for fault in wanted if fault.timeout != PATIENT]
    shares = [share for share in (patient, *(usual[n::LANES] for n in range(LANES))) if share]
    with concurrent.futures.ThreadPoolExecutor(LANES + 1) as pool:
        lanes = [pool.submit(drive, tmp_path_factory.mktemp("lane"), share, found, stop) for share in shares]
        yield found
        stop.set()
        for one in lanes:
            one.result()


def test_there_are_enough_faults_and_no_two_have_one_name() -> None:
    names = [fault.name for fault in MATRIX]
    assert len(names) == len(set(names)) >= 120


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in MATRIX])
def test_a_fault_ends_in_the_right_bytes_or_the_promised_error(fault: Fault, outcomes: Outcomes) -> None:
    outcomes[fault.name].result(300)
