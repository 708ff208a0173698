"""The story's documents: PDFs, bills of materials, signed manifests, archives, tables. All made up."""

import gzip
import hashlib
import io
import json
import random
import tarfile
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime

from attachfs.demo.pdf import Pdf

_MODULES = (
    ("trio", "0.35.0", "MIT OR Apache-2.0"),
    ("httpx", "0.28.1", "BSD-3-Clause"),
    ("msgspec", "0.22.0", "BSD-3-Clause"),
    ("h11", "0.16.0", "MIT"),
    ("certifi", "2026.1.4", "MPL-2.0"),
    ("idna", "3.20", "BSD-3-Clause"),
    ("click", "8.5.1", "BSD-3-Clause"),
    ("cryptography", "50.0.2", "Apache-2.0 OR BSD-3-Clause"),
)


def _compact(time: str) -> str:
    return datetime.fromisoformat(time).strftime("%Y%m%d%H%M%S")


def bill_of_lading(container: str, time: str) -> bytes:
    """Return a bill of lading, as PDF."""
    pdf = Pdf("Bill of Lading NT-2026-00417", _compact(time))
    pdf.table(
        [
            ("Shipper", "Consignee", "Notify"),
            ("Lindholm Sensor AB", "Harbour Works Ltd", "Same as consignee"),
        ],
        (0, 160, 320),
    )
    pdf.heading("Carriage")
    pdf.text("Vessel Northern Tern, voyage 611E, from Gothenburg (SEGOT) to Felixstowe (GBFXT).")
    pdf.text(f"Container {container}.")
    rows = [("Marks", "Packages", "Description of goods", "Gross weight", "Measure")]
    rows += [
        (f"LS {box:03}", "18 cartons", "Pressure sensors, model P-90", f"{212 + 3 * box} kg", "1.4 m3")
        for box in range(1, 13)
    ]
    pdf.table(rows, (0, 70, 150, 330, 420))
    pdf.heading("Seal")
    pdf.text(
        "Shipped on board in apparent good order and condition under seal HS0417729. One original of three."
    )
    return pdf.finish()


def report(
    title: str, time: str, paragraphs: Sequence[str], findings: Mapping[str, str], photo: bytes = b""
) -> bytes:
    """Return an inspection report or certificate, as PDF, with a photo of 960 by 640 pixels."""
    pdf = Pdf(title, _compact(time))
    pdf.text(f"Issued {time}. This document is part of a made-up story.")
    for paragraph in paragraphs:
        pdf.text(paragraph)
    if findings:
        pdf.heading("Findings")
        pdf.table([("Item", "Result"), *findings.items()], (0, 220))
    if photo:
        pdf.picture(photo, 960, 640)
    return pdf.finish()


def cyclonedx(name: str, version: str, time: str) -> bytes:
    """Return a bill of materials in CycloneDX JSON."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:generic/{module}@{its_version}",
            "name": module,
            "version": its_version,
            "licenses": [{"expression": licence}],
            "purl": f"pkg:generic/{module}@{its_version}",
            "hashes": [{"alg": "SHA-256", "content": _made_up_digest(module, its_version)}],
        }
        for module, its_version, licence in _MODULES
    ]
    ref = f"pkg:generic/{name}@{version}"
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ref)}",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": {"type": "application", "bom-ref": ref, "name": name, "version": version},
        },
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": [part["bom-ref"] for part in components]}],
    }
    return (json.dumps(bom, indent=2) + "\n").encode()


def spdx(name: str, version: str, time: str) -> bytes:
    """Return a bill of materials in SPDX's tag-value text."""
    lines = [
        "SPDXVersion: SPDX-2.3",
        "DataLicense: CC0-1.0",
        "SPDXID: SPDXRef-DOCUMENT",
        f"DocumentName: {name}-{version}",
        f"DocumentNamespace: https://demo.attachfs.invalid/spdx/{name}-{version}",
        "Creator: Tool: attachfs-demo",
        f"Created: {time}",
    ]
    for module, its_version, licence in _MODULES:
        lines += [
            "",
            f"PackageName: {module}",
            f"SPDXID: SPDXRef-Package-{module}",
            f"PackageVersion: {its_version}",
            f"PackageDownloadLocation: https://demo.attachfs.invalid/{module}",
            f"PackageChecksum: SHA256: {_made_up_digest(module, its_version)}",
            f"PackageLicenseConcluded: {licence}",
            f"Relationship: SPDXRef-DOCUMENT DESCRIBES SPDXRef-Package-{module}",
        ]
    return ("\n".join(lines) + "\n").encode()


def _made_up_digest(name: str, version: str) -> str:
    return hashlib.sha256(f"{name} {version}".encode()).hexdigest()


def source_files(name: str, version: str) -> dict[str, bytes]:
    """Return a small program's files."""
    code = f'"""The gate."""\n\n\ndef main() -> None:\n    """Greet."""\n    print("{name} {version}")\n'
    return {
        "README.md": f"# {name}\n\nVersion {version}. Opens the gate for whoever may pass.\n".encode(),
        f"src/{name.replace('-', '_')}.py": code.encode(),
        "CHANGES": f"{version}\n  - Rotate the event log at midnight UTC.\n".encode(),
    }


def tar_gz(top: str, files: Mapping[str, bytes], time: str) -> bytes:
    """Return a compressed archive."""
    moment = int(datetime.fromisoformat(time).timestamp())
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(f"{top}/{path}")
            member.size, member.mtime, member.mode = len(content), moment, 0o644
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=moment)


def zipped(files: Mapping[str, bytes], time: str) -> bytes:
    """Return a ZIP archive."""
    moment = datetime.fromisoformat(time)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            when = (moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second)
            archive.writestr(zipfile.ZipInfo(path, when), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def signed_manifest(name: str, version: str, files: Mapping[str, bytes]) -> bytes:
    """Return a manifest (`sha256sum` lines) in a signature's armour; the signature is made up."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {path}" for path, content in files.items()]
    body = "\n".join(lines)
    signature = hashlib.sha512(body.encode()).hexdigest()
    return (
        f"-----BEGIN SIGNED MANIFEST-----\nProduct: {name} {version}\n\n{body}\n"
        f"-----BEGIN SIGNATURE-----\n{signature[:64]}\n{signature[64:]}\n-----END SIGNATURE-----\n"
    ).encode()


def readings(seed: int, start: str, rows: int) -> bytes:
    """Return a logger's table, as CSV."""
    chance = random.Random(seed)
    day = start[:10]
    lines = ["time,temperature_c,humidity_pct,shock_g"]
    lines += [
        f"{day}T{row // 12 % 24:02}:{row % 12 * 5:02}:00Z,"
        f"{chance.gauss(4, 0.4):.2f},{chance.gauss(61, 3):.1f},{abs(chance.gauss(0, 0.2)):.3f}"
        for row in range(rows)
    ]
    return ("\r\n".join(lines) + "\r\n").encode()
