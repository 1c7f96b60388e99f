"""A process that `run_processes` starts.

python -m fnostab.launch.worker fnostab.workflows.child train_job train_together
"""

import importlib
import sys

from fnostab.io.garbage import lasting_imports
from fnostab.launch.workers import serve_jobs


def main() -> int:
    """Import what carries out a job, and what trains a group of them; carry out what stdin brings; returns 0."""
    module, *names = sys.argv[1:]
    with lasting_imports():
        imported = importlib.import_module(module)
    run, run_together = (getattr(imported, name) for name in names)
    return serve_jobs(run, run_together)


if __name__ == "__main__":
    sys.exit(main())
