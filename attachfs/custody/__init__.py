"""The custody log: who opened which file, when, and with what result, in lines chained by their hashes.

Owns: the form of a line and of the chain (`chain.py`), and appending to it (`writer.py`).

Invariants: each line has the SHA-256 of the line before it, the first line of a new file that of the last
line of the file before; so a line that is changed, missing, inserted or moved is found by whoever reads the
file. A line is written whole, in one write(2), before what it tells of succeeds. No secret is in any line.

Locks: several processes append to one file. Each takes flock(2) on the file while it looks for the last line
and writes the next. Lock order: the object's own lock, the file of the log's name, a rotated file (shared).
`writer.py` blocks on the disk and is called in worker threads only; `chain.py` is pure.
"""
