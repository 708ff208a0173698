"""A blob from open to close: downloaded, verified, withheld until verified, pinned."""
