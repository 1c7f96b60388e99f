"""`python -m fnostab`, and the program `fnostab`: the command line."""

import sys

from fnostab.io.huge_pages import start_again_with_huge_pages


def run() -> int:
    """Run the command line with this process's arguments; returns the exit code."""
    start_again_with_huge_pages()  # before anything is imported that would be imported twice
    from fnostab.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
