"""What the demo ledger tells: fills a `Store`, and names the attachments that the tour visits."""

from attachfs.demo.store import Store, attachment


def fill(store: Store) -> None:
    """Fill a store."""
    blob = store.add_blob(b"hello\n", scan="SCANNED_OK")
    store.create_asset({"arc_display_name": "A box", "arc_primary_image": attachment(blob, "hello.txt")})
