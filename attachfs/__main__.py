"""`python -m attachfs` is the same as `attachfs`."""

from attachfs.cli.main import main

main()
