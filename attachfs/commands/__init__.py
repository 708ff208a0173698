"""What the commands beside `mount` do, one module each; cli.py has their options.

A command's `run` prints what it found and returns the exit code of `text.py`. Each is imported when it is
called, so that `attachfs --help` and `attachfs mount` do not wait for the others.
"""
