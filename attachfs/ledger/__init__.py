"""What is known of the ledger, for as long as it is fresh: records, listings, answers kept on disk.

Owns: all cached metadata, and the decision what is served while the service is silent. `view.Ledger` puts
the parts together: `records` (assets, events, `/info`), `listing_cache` (shared listings) and `bulk` (whole
listings read ahead of a long walk); `refresher` is the one way to the service for all of them, `outage`
knows whether it answers, `lifetimes` for how long what is good. `answer_store` has the answers on disk.

Invariants: 401, 403 and 404 are answers and always obeyed. What was asked for in an older generation
(before everything was forgotten) is given to its callers and not kept. Every table is bounded. A listing
that is complete never changes. Everything runs on the event loop but for JSON of large pages and all of
SQLite's work, which is done in threads; there are no locks but a listing's own, which is held while one of
its pages is read.
"""
