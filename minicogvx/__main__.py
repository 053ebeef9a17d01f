"""`python -m minicogvx` is `minicogvx`."""

import sys

from minicogvx.cli import main

if __name__ == "__main__":
    sys.exit(main())
