"""`fnostab train`, as the entry point `main` of MLproject."""

import sys

from fnostab.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
