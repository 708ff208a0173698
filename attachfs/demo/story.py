"""What the demo ledger tells: a container's voyage, a door's camera, software releases, and some odd records.

`fill` puts it into a `Store`. Identities and times are the same every time; so is the content, as long as
Pillow's version is. Nothing is said here of how pictures and papers are made.
"""

import tempfile
from pathlib import Path

from attachfs.demo import story_media as media
from attachfs.demo import story_papers as papers
from attachfs.demo.store import Store, attachment
from attachfs.demo.story_odd import write_oddities, write_older_records
from attachfs.demo.writer import Story, StoryWriter, path_of, uid

__all__ = ["Story", "fill"]

_BOX = "ATFU 284417 3"


def fill(store: Store) -> Story:
    """Fill a store, and return where its interesting attachments are."""
    writer = StoryWriter(store)
    _write_voyage(writer)
    _write_door(writer)
    _write_releases(writer)
    write_older_records(writer)
    write_oddities(writer)
    return writer.finish()


def _write_voyage(writer: StoryWriter) -> None:
    story = writer.story
    time = "2026-03-02T08:14:00Z"
    certificate = writer.attach(
        "certificate-of-class.pdf",
        papers.report("Certificate of Class", time, ["Northern Tern, IMO 9999912, is in class."], {}),
        time,
        "Certificate of class",
    )
    ship = writer.asset(
        "MV Northern Tern",
        "Vessel",
        time,
        {
            "arc_description": "Feeder ship, 1,004 TEU",
            "arc_primary_image": writer.attach("northern-tern.jpg", media.dock("Northern Tern", time), time),
            "certificate": certificate,
        },
    )

    time = "2026-03-02T09:02:11Z"
    photo = writer.attach("container.jpg", media.container(_BOX, "Empty, swept, dry", time), time)
    lading = writer.attach(
        "bill-of-lading.pdf", papers.bill_of_lading(_BOX, time), time, "Bill of lading NT-2026-00417"
    )
    box = writer.asset(
        f"Container {_BOX}",
        "Shipping container",
        time,
        {
            "arc_description": "20 ft dry container",
            "arc_serial_number": _BOX,
            "arc_primary_image": photo,
            "bill of lading": lading,
        },
    )
    story.pdf = path_of(f"assets/{box}", lading)

    time = "2026-03-02T10:40:52Z"
    seal = writer.attach("seal-applied.jpg", media.seal("HS0417729", "Seal HS0417729 applied", time), time)
    cargo = writer.attach(
        "cargo.jpg", media.papers("216 cartons, braced", time), time, "Cargo before closing"
    )
    packing = writer.attach("packing-list.csv", papers.readings(1, time, 36), time, "Packing list")
    event = writer.event(
        box,
        "Seal applied",
        time,
        {"seal": seal, "cargo": cargo, "packing list": packing, "seal_number": "HS0417729"},
        who="L. Berg, Lindholm Sensor AB",
    )
    story.photo = path_of(event, seal)

    time = "2026-03-03T05:21:37Z"
    loaded = writer.attach("loaded.jpg", media.dock("Loaded, bay 07 row 03 tier 82", time, stacks=8), time)
    stowage = papers.report("Stowage plan", time, ["Voyage 611E."], {"Bay 07": _BOX, "Lashing": "checked"})
    event = writer.event(
        box,
        "Loaded",
        time,
        {
            "photo": loaded,
            "stowage": writer.attach("stowage.pdf", stowage, time, "Stowage plan"),
            "certificate": certificate,
        },
        who="Terminal 2, Gothenburg",
    )
    story.shared = [path_of(f"assets/{ship}", certificate), path_of(event, certificate)]
    event = writer.event(
        ship,
        "Departed",
        "2026-03-03T11:00:00Z",
        {"certificate": certificate, "draught_m": "6.8"},
        who="Bridge",
    )
    story.shared.append(path_of(event, certificate))
    # Somebody changed what this event says after the transparency log had it: the file itself is untouched.
    writer.store.rewrite(ship, event.rsplit("/", 1)[-1], draught_m="7.4")
    story.rewritten = path_of(event, certificate)

    _write_arrival(writer, box, photo)


def _write_arrival(writer: StoryWriter, box: str, photo: dict[str, str]) -> None:
    story = writer.story
    time = "2026-03-05T14:08:19Z"
    found = media.seal("HS0417729", "Seal found intact", time)
    intact = writer.attach("seal-intact.jpg", found, time, "Seal on arrival")
    # Somebody swapped this picture after it was recorded: what is handed out shows another seal, and has
    # been filled up to the same length (viewers stop at the end of the picture).
    swapped = media.seal("HS0471792", "Seal found intact", time, body=(214, 214, 208))
    swapped = swapped.ljust(len(found), b"\0")
    writer.store.tamper(intact["arc_blob_identity"].rsplit("/", 1)[-1], swapped)
    findings = {"Seal": "HS0417729, intact", "Doors": "not opened since sealing", "Floor": "dry"}
    opened = media.papers("Opened for inspection", time)
    examined = papers.report(
        "Customs inspection GB-FXT-26-1183",
        time,
        ["Examined at Felixstowe, Dock Gate 2, on arrival of Northern Tern, voyage 611E."],
        findings,
        opened,
    )
    readings = papers.readings(7, time, 2000)
    event = writer.event(
        box,
        "Customs inspection",
        time,
        {
            "seal": intact,
            "crate": writer.attach("opened.jpg", opened, time, "Crate 4 opened"),
            "report": writer.attach("inspection-report.pdf", examined, time, "Inspection report"),
            "logger": writer.attach("logger.csv", readings, time, "Temperature logger"),
        },
        who="HM Customs, Felixstowe",
    )
    story.tampered = path_of(event, intact)
    story.unreadable[story.tampered] = "the bytes do not match the record"

    time = "2026-03-06T07:55:40Z"
    delivered = media.container(_BOX, "Delivered to Harbour Works", time, tilt=40)
    proof = papers.report(
        "Proof of delivery", time, ["Received in full, no remarks."], {"Cartons": "216 of 216"}
    )
    writer.event(
        box,
        "Delivered",
        time,
        {"proof": writer.attach("proof-of-delivery.pdf", proof, time, "Proof of delivery")},
        {
            "arc_primary_image": writer.attach("delivered.jpg", delivered, time),
            "location": "Harbour Works, gate 1",
        },
        who="A. Okafor, Harbour Works Ltd",
    )
    # The first picture is no longer the asset's: only the event that brought it still has it.
    story.superseded = path_of(f"assets/{box}/events/{uid(f'event 0 Container {_BOX}')}", photo)


def _write_door(writer: StoryWriter) -> None:
    time = "2026-04-11T06:30:00Z"
    settings = b'{\n  "camera": "CAM-07",\n  "fps": 5,\n  "zones": [1, 2, 3],\n  "retention_days": 90\n}\n'
    camera = writer.asset(
        "North gate camera",
        "Camera",
        time,
        {
            "arc_description": "Door camera CAM-07",
            "arc_primary_image": writer.attach("cam-07.jpg", media.still(time, 0.5), time),
            "settings": writer.attach("settings.json", settings, time, "Settings"),
        },
    )
    time = "2026-04-18T23:40:00Z"
    with tempfile.TemporaryDirectory(prefix="attachfs-footage-") as directory:
        path = Path(directory, "footage.avi")
        media.write_footage(path, time)
        with path.open("rb") as file:
            footage = writer.attach("cam-07-20260418T2340.avi", file, "2026-04-18T23:59:02Z", "Footage 23:40")
    stills = {
        f"still {number}": writer.attach(
            f"motion-{number:02}.jpg", media.still(f"2026-04-18T23:40:{second}Z", (second - 20) / 18), time
        )
        for number, second in enumerate((22, 25, 28, 31, 34, 37), 1)
    }
    event = writer.event(
        camera, "Motion detected", "2026-04-18T23:59:02Z", {"footage": footage, **stills}, who="Recorder 2"
    )
    writer.story.footage = path_of(event, footage)
    time = "2026-04-20T09:12:30Z"
    incident = papers.report(
        "Incident report 26-031",
        time,
        ["A person walked past the north gate at 23:40:20 UTC. The door stayed shut."],
        {"Door": "locked", "Badge reader": "no attempt"},
    )
    # Nothing was heard: an empty file is evidence, too.
    audio = writer.attach("audio.wav", b"", time, "Audio track (none)")
    report = writer.attach("incident-26-031.pdf", incident, time, "Incident report")
    event = writer.event(
        camera, "Incident reviewed", time, {"report": report, "audio": audio}, who="Security desk"
    )
    writer.story.empty = path_of(event, audio)


def _write_releases(writer: StoryWriter) -> None:
    story = writer.story
    name = "gate-keeper"
    product = writer.asset(
        "gate-keeper",
        "Software package",
        "2026-01-12T10:00:00Z",
        {
            "arc_description": "The door controller's program",
            "readme": writer.attach(
                "README.md", papers.source_files(name, "2.3.0")["README.md"], "2026-01-12T10:00:00Z"
            ),
        },
        public=True,
    )
    story.public_asset = f"publicassets/{product}"
    for version, time in (
        ("2.3.0", "2026-01-12T10:05:00Z"),
        ("2.4.0", "2026-02-20T16:31:08Z"),
        ("2.4.1", "2026-05-06T12:47:55Z"),
    ):
        files = papers.source_files(name, version)
        top = f"{name}-{version}"
        sbom = writer.attach(
            f"{top}.cdx.json", papers.cyclonedx(name, version, time), time, "SBOM (CycloneDX)"
        )
        archive = writer.attach(f"{top}.tar.gz", papers.tar_gz(top, files, time), time, "Sources")
        event = writer.event(
            product,
            f"Release {version}",
            time,
            {
                "sbom": sbom,
                "sbom/spdx": writer.attach(
                    f"{top}.spdx", papers.spdx(name, version, time), time, "SBOM (SPDX)"
                ),
                "manifest": writer.attach(
                    f"{top}.manifest.asc",
                    papers.signed_manifest(name, version, files),
                    time,
                    "Signed manifest",
                ),
                "sources": archive,
            },
            {"version": version},
            who="Release engineering",
        )
        story.sbom, story.archive = path_of(event, sbom), path_of(event, archive)
        story.public = f"public{story.sbom}"
    # A "Publish" event: what it attaches stands in the asset's attributes only.
    time = "2026-05-07T08:00:00Z"
    notes = writer.attach("release-notes.txt", b"2.4.1: rotate the event log at midnight UTC.\n", time)
    event = writer.event(product, "Publish", time, {}, {"release notes": notes}, operation="Record")
    story.publish = path_of(event, notes)

    time = "2026-05-11T15:20:00Z"
    image = writer.attach(
        "cam-fw-1.9.2.zip",
        papers.zipped({"firmware.bin": bytes(range(256)) * 512, "VERSION": b"1.9.2\n"}, time),
        time,
    )
    firmware = writer.asset("Camera firmware", "Firmware", time, {"image": image, "version": "1.9.2"})
    minutes = papers.report("Key ceremony, minutes", time, ["For the signing officers only."], {})
    ceremony = writer.blob("key-ceremony.pdf", minutes, time)
    writer.store.forbid(ceremony.id)
    scanned_later = writer.blob(
        "cam-fw-1.9.2.cdx.json", papers.cyclonedx("cam-fw", "1.9.2", time), time, scan=""
    )
    event = writer.event(
        firmware,
        "Signed",
        time,
        {
            "minutes": attachment(ceremony, "key-ceremony.pdf", "Minutes of the key ceremony"),
            "sbom": attachment(scanned_later, "cam-fw-1.9.2.cdx.json", "SBOM (CycloneDX)"),
        },
        who="Signing officers",
    )
    story.forbidden = f"{event}/{ceremony.id}"
    story.unreadable[story.forbidden] = "an access policy refuses it"
    story.unscanned = f"{event}/{scanned_later.id}"
