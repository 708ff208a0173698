"""attachfs: an evidence ledger's attachments as a read-only, verified filesystem."""

__version__ = "0.1.0"
