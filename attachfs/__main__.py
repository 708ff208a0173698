"""`python -m attachfs` is the same as `attachfs`."""

from attachfs.cli import main

main()
