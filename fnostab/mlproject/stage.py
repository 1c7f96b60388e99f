"""`fnostab study`, as the entry points `stage_a` and `stage_b` of MLproject."""

import sys

from fnostab.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
