"""`python -m fnostab`: the command line."""

import sys

from fnostab.cli import main

if __name__ == "__main__":
    sys.exit(main())
