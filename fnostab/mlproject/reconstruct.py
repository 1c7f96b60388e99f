"""`fnostab reconstruct`, as the entry point `reconstruct` of MLproject."""

import sys

from fnostab.mlproject.caller import run_for_caller

if __name__ == "__main__":
    sys.exit(run_for_caller("reconstruct"))
