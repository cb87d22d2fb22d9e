"""Run as ``python -m mutants`` in the folder `scripts`, or as ``make mutants``."""

import sys

if __name__ == "__main__":
    from mutants.command import main

    sys.exit(main())
