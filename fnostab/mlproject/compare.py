"""`fnostab compare`, as the entry point `compare` of MLproject."""

import sys

from fnostab.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
