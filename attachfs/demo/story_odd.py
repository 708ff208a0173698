"""The story's odd corner: records in older shapes, names that try to break out, what is no attachment."""

from attachfs.demo import story_media as media
from attachfs.demo import story_papers as papers
from attachfs.demo.store import attachment
from attachfs.demo.writer import StoryWriter

# Harmless, and no scanner's test pattern either; it only stands for malware.
_INFECTED = (
    b"This harmless text stands for malware in attachfs's demo ledger.\r\n"
    b"The service's scanner is said to have found it bad.\r\n"
)

_ODD_NAMES = (
    "../../etc/passwd",
    "./cat.jpg",
    'a "quoted" name\\with a backslash.txt',
    "two\nlines.txt",
    "invoice\u202egpj.exe",
    "Straße, 東京, Ελλάδα.txt",
    "cafe\u0301.txt",
    "caf\u00e9.txt",
    "-rf",
    ".hidden",
    "x" * 300 + ".txt",
    "",
)


def write_older_records(writer: StoryWriter) -> None:
    """Tell of a container that was recorded before 2023, and of one recorded in between."""
    time = "2022-06-14T11:30:00Z"
    photo = writer.blob("reefer.jpg", media.container("ATFU 190032 6", "Reefer", time, (226, 228, 230)), time)
    log = writer.blob("reefer-log.csv", papers.readings(22, time, 400), time)
    reefer = writer.asset(
        "Reefer ATFU 190032 6",
        "Refrigerated container",
        time,
        {
            "arc_attachments": [
                {
                    "arc_display_name": "arc_primary_image",
                    "arc_attachment_identity": f"attachments/{photo.id}",
                    "arc_hash_alg": "SHA-256",
                    "arc_hash_value": photo.digest,
                },
                {
                    "arc_display_name": "Temperature log",
                    "arc_attachment_identity": f"blobs/{log.id}",
                    "arc_hash_alg": "sha256",
                    "arc_hash_value": log.digest.upper(),
                },
            ]
        },
    )
    writer.store.override_info(
        photo.id, identity=f"attachments/{photo.id}", hash={"algorithm": "SHA-256", "value": photo.digest}
    )
    writer.story.legacy = f"assets/{reefer}/{photo.id}"

    time = "2023-02-01T09:00:00Z"
    repair = writer.attach(
        "repair.pdf",
        papers.report("Repair order 5512", time, ["Compressor replaced."], {"Cost": "EUR 2,140"}),
        time,
    )
    sticker = writer.attach(
        "sticker.jpg", media.seal("R-5512-OK", "Repair sticker", time, (90, 170, 90)), time
    )
    writer.event(reefer, "Repaired", time, {"arc_attachments": [repair], "arc_primary_image": [sticker]})
    writer.event(reefer, "Inspected", "2023-08-01T09:00:00Z", {"arc_attachments": []})


def write_oddities(writer: StoryWriter) -> None:
    """Tell of odd names, of malware, of what only looks like attachments, and of what is not tracked."""
    story = writer.story
    time = "2026-06-01T07:00:00Z"
    cat = writer.blob("cat", b"Not a cat.\n", time)
    mill = writer.asset(
        'Lost & found: "odd" names / シート 7',
        "Box",
        time,
        {"a/b": attachment(cat, "./cat.jpg", "A cat"), "../up": "no attachment"},
    )
    named = {
        f"item {number}/{name[:12]}": attachment(
            writer.blob(f"odd {number}", f"This is item {number}.\n".encode(), time), name
        )
        for number, name in enumerate(_ODD_NAMES)
    }
    event = writer.event(mill, "Named / oddly", time, named)
    story.odd = event

    time = "2026-06-02T13:45:10Z"
    bad = writer.blob("supplier-offer.txt", _INFECTED, time)
    writer.store.set_scan(bad.id, "SCANNED_BAD", "Demo.Test.Stand-In FOUND", at="2026-06-03T02:00:00Z")
    offer = writer.attach("offer.pdf", papers.report("Offer 884", time, ["Twelve cameras."], {}), time)
    inbox = writer.asset("Supplier inbox", "Mailbox", time, {"arc_description": "What suppliers send"})
    event = writer.event(
        inbox,
        "Received",
        time,
        {"offer": offer, "macro": attachment(bad, "supplier-offer.txt", "Offer, with macro")},
        who="mail gateway",
    )
    story.infected = f"{event}/{bad.id}"
    story.unreadable[story.infected] = "the service's scanner found it bad"

    # Neither of these is an attachment: a bare identity, and content that is kept elsewhere.
    writer.asset(
        "Archive index",
        "Index",
        "2026-06-04T10:00:00Z",
        {
            "see_also": f"blobs/{bad.id}",
            "external": {
                "arc_blob_hash_alg": "SHA256",
                "arc_blob_hash_value": bad.digest,
                "location": "tape 14",
            },
        },
    )

    time = "2026-06-05T10:00:00Z"
    pallet = writer.asset(
        "Pallet 77 (scrapped)",
        "Pallet",
        time,
        {"photo": writer.attach("pallet.jpg", media.papers("Scrap", time), time)},
    )
    writer.event(pallet, "Scrapped", "2026-06-06T10:00:00Z", {}, operation="StopTracking")
    story.untracked = f"assets/{pallet}"
