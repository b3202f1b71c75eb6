"""`python -m modelserve` is the command `modelserve`."""

import sys

from modelserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
