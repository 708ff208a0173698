"""Break the rules that keep bytes true, one at a time, and show that a quick test notices each.

`scripts/mutants` runs it. Each mutant changes one line in a copy of the tree; the tests named beside it have
to fail there. A newcomer can read it as a list of the rules and of where they stand.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
_WITHIN = 300  # seconds for the tests of one mutant


class Mutant(NamedTuple):
    """A rule, the line that keeps it, what becomes of the line, and the test file that has to notice."""

    rule: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "bytes whose digest is another are not served",
        "blobs/staged_blob.py",
        "if got != expected.hex:",
        "if not got:",
        "unit/blobs/test_store.py",
    ),
    Mutant(
        "bytes of another length than recorded are not served",
        "blobs/staged_blob.py",
        "if self.written != self._size:",
        "if self.written > self._size:",
        "unit/blobs/test_store.py",
    ),
    Mutant(
        "a file opens only if /info and its owner record the same digest",
        "blobs/store.py",
        "if anchors is not None and anchors != {digest}:",
        "if anchors is not None and not anchors:",
        "unit/blobs/test_store.py",
    ),
    Mutant(
        "the last part of a stream is withheld until the whole is verified",
        "blobs/withholding.py",
        "return self._withheld * WITHHELD if self._withholding else self._size",
        "return self._size",
        "unit/blobs/test_withholding.py",
    ),
    Mutant(
        "a cached blob that changed since it was sealed is hashed again",
        "cache/reader.py",
        "if file.stamp != stamp and not files.is_sealed(digest, st):",
        "if stamp is None:",
        "unit/cache/test_disk_cache.py",
    ),
    Mutant(
        "a cached blob of another length is not served",
        "cache/reader.py",
        "if stamp is None or stamp.size != size:",
        "if stamp is None:",
        "unit/cache/test_disk_cache.py",
    ),
    Mutant(
        "only what is complete gets its name in the cache",
        "cache/writer.py",
        "if not self.complete or st.st_size != self.size:",
        "if not self.complete and st.st_size != self.size:",
        "unit/cache/test_disk_cache.py",
    ),
    Mutant(
        "an /info that is about another attachment is no answer",
        "model.py",
        "if found is None or found[1] != ref.attachment:",
        "if found is None:",
        "unit/test_model.py",
    ),
    Mutant(
        "a connection is not used again if anything is left behind an answer",
        "service/http1.py",
        "unread = behind or self._wire.unread()",
        "unread = None",
        "unit/service/test_framing.py",
    ),
    Mutant(
        "what came behind an answer on a used connection casts doubt on the answer itself",
        "service/http1.py",
        "if unread and used:",
        "if unread and not used:",
        "unit/service/test_framing.py",
    ),
    Mutant(
        "a body that ends early is an error",
        "service/http1.py",
        "if not piece and not self._until_close:",
        "if not piece and self._until_close:",
        "unit/service/test_http1.py",
    ),
    Mutant(
        "a part is the part that was asked for",
        "service/blob_stream.py",
        "wrong = first != requested or not first <= last < total",
        "wrong = not first <= last < total",
        "unit/service/test_client.py",
    ),
    Mutant(
        "a stranger's page never says that something does not exist",
        "service/refusals.py",
        'return raw.startswith(b"{") and (',
        "return True or (",
        "unit/service/test_transport.py",
    ),
)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def survives(mutant: Mutant) -> str:
    """Return why a mutant was not caught, or "" if it was."""
    with tempfile.TemporaryDirectory(prefix="attachfs-mutant-") as folder:
        copy = Path(folder)
        for name in ("attachfs", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        patched = copy / "attachfs" / mutant.file
        text = patched.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return f"{mutant.file} has no such line any more: bring tests/mutants.py up to date"
        patched.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"tests/{mutant.test}"],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=_WITHIN,
            check=False,
        )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode == 1 and failed:
        test = failed[0].split(" - ")[0].removeprefix("FAILED ")
        _say(f"caught: {mutant.rule}\n        {test}")
        return ""
    return f"tests/{mutant.test} passes without it" if done.returncode == 0 else done.stdout[-2000:]


def main(words: list[str]) -> int:
    """Try the mutants whose rule has one of these words, or all; return the exit status."""
    chosen = [one for one in MUTANTS if not words or any(word in one.rule for word in words)]
    survivors = 0
    for mutant in chosen:
        reason = survives(mutant)
        if reason:
            survivors += 1
            _say(f"SURVIVES: {mutant.rule}: {reason}")
    _say(f"{len(chosen) - survivors} of {len(chosen)} mutants were caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
