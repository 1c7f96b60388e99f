"""A process that `run_processes` starts: `python -m fnostab.launch.worker fnostab.workflows.child:train_job`."""

import importlib
import sys

from fnostab.io.garbage import lasting_imports
from fnostab.launch.workers import serve_jobs


def main() -> int:
    """Import the function that carries out a job, and carry out the jobs that stdin brings; returns 0."""
    module, _, name = sys.argv[1].partition(":")
    with lasting_imports():
        run = getattr(importlib.import_module(module), name)
    return serve_jobs(run)


if __name__ == "__main__":
    sys.exit(main())
