"""`python -m uniportrait_lite`: the command line."""

import sys

from uniportrait_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
