"""`python -m surgeon` is the same as `surgeon`."""

from surgeon.cli import main

main()
