"""`fnostab reconstruct`, as the entry point `reconstruct` of MLproject."""

import sys

from fnostab.cli import main

if __name__ == "__main__":
    sys.exit(main(["reconstruct", *sys.argv[1:]]))
