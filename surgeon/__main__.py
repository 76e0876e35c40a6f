"""`python -m surgeon` is the same as `surgeon`."""

from surgeon.cli import main

if __name__ == "__main__":
    # Processes that are started import this module too.
    main()
