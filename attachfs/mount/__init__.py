"""The mount process: puts the parts together, runs them, ends them; signals, log, service manager, metrics.

Owns: which real parts go together (serve.py, origin.py), the process's descriptors and limits, where the
log goes, credentials and their reload, what is mounted where, and whether a mount answers (probe.py, which
every command uses).

What always holds: nothing that runs in the background ends the mount; a figure that cannot be had is left
out; what can come right by itself is a warning, and what never can is refused before anything is mounted;
nothing touches a mount that may hang but a child process that can be left behind.

The order of the end: handlers are answered, files are closed, tasks are cancelled and have ended, and only
then databases, the cache and connections are closed.

Two locks, neither taken inside the other: a reload waits for the one before it (`service_status`), and the
custody log's lines are written one batch at a time (`custody`).
"""
