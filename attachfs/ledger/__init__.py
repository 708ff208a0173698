"""What is known of the ledger, for as long as it may be believed: records, listings, answers kept on disk."""
