"""Verified blobs on disk by their digest, and the quarantine of those that did not match."""
