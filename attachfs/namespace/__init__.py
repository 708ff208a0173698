"""Paths, nodes, attributes and names, as if there were no kernel.

Owns: what there is under a path (`tree.py`, `nodes.py`, `directory.py`), which attributes it has
(`xattrs.py`), and what people's names mean (`by_name.py` and the modules below it: `shared_names.py` for
assets and events, `file_names.py` for files, `safe_names.py` for text as a name).

Invariants: a node is an identity and nothing else, so that none goes stale; what is known of it is in the
ledger. A name that is no identity costs no request below `assets`. A name in `by-name` depends on the
ledger's records alone, and every name that is listed opens. No record makes a directory unreadable.

Methods called `cached_…` answer from memory, never wait, and return None where something has to be fetched.
There are no locks: all of it runs in the event loop's thread, and between two awaits nothing else does.
"""
