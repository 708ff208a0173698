"""attachfs: an evidence ledger's attachments as a read-only, verified filesystem."""

import sys

# The library's own command loads a terminal's colours, a tenth of all that a mount has to load. Where it is
# missing, the library does without it.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
