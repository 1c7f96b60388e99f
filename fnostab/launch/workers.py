"""Jobs in several processes of this machine, each of which takes one after the other."""

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

from fnostab.io.openmp import passive_waiting
from fnostab.launch.jobs import TICK_S, Job, OnUpdate, Run, Update, run_job, supervised

#: Lines of a process's stderr that are kept, for the case that it dies.
_KEPT_LINES: Final = 20
#: Seconds that a process has to end once its last run has.
_PATIENCE_S: Final = 30.0


def run_processes(jobs: Sequence[Job], command: Sequence[str], on_update: OnUpdate, workers: int) -> list[Update]:
    """Carry out the jobs in `workers` processes of their own; returns how each ended.

    `command` starts a process that takes one job after the other (see `serve_jobs`); after one that does not end
    `done`, the next has a new process. A signal, or an exception of `on_update`, stops all of them; once they have
    stored what they had, `Interrupted` or that exception is raised. The threads of several processes sleep while they
    wait, unless the environment says otherwise: together they may have as many as there are cores.
    """
    waiting = list(enumerate(jobs))[::-1]
    workers = min(workers, len(jobs))
    environment = os.environ | (passive_waiting(os.environ) if workers > 1 else {})
    processes = [_Process(command, environment) for _ in range(workers)]

    def stop() -> None:
        waiting.clear()
        for process in processes:
            process.terminate()

    def begin_next(process: _Process) -> None:
        if waiting:
            news.register(process.begin(*waiting.pop()), selectors.EVENT_READ, process)
        else:
            process.end()

    with contextlib.ExitStack() as opened, supervised(len(jobs), on_update, stop) as supervisor:
        news = opened.enter_context(selectors.DefaultSelector())
        for process in processes:
            begin_next(opened.enter_context(process))
        while news.get_map():
            for key, _ in news.select(TICK_S):
                update = key.data.receive(stopped=supervisor.cause is not None)
                supervisor.hear(key.data.place, update)
                if update.state != "running":
                    news.unregister(key.fileobj)
                    begin_next(key.data)
            supervisor.check()
    return supervisor.ends


def serve_jobs(run: Run) -> int:
    """Be a process of `run_processes`: read jobs from stdin, a JSON line each, and send updates to stdout; returns 0.

    Everything else that is printed goes to stderr. An empty line says that no more jobs come. If stdin ends without
    one, the process that started this one is dead: it ends as by SIGTERM.
    """
    news = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()

    def send(update: Update) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asdict(update)), file=news, flush=True)

    while line := jobs.get():
        run_job(run, Job(**json.loads(line)), send)
    return 0


def _read_jobs(jobs: "queue.SimpleQueue[bytes]") -> None:
    # Not from `sys.stdin`: Python aborts at its end if a thread still waits in that.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        for line in stdin:
            jobs.put(line.strip())
            if not line.strip():
                return
    jobs.put(b"")
    os.kill(os.getpid(), signal.SIGTERM)


class _Process:
    """A process that `command` starts, in `environment`, when it has a job, as a context; `place` is that of its job.

    Its stderr is kept, for the case that it dies.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.place = -1
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._last = Update("done")

    def __enter__(self) -> "_Process":
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stderr:
            if self._last.state == "running":
                self.terminate()
            self.end()

    def begin(self, place: int, job: Job) -> int:
        """Hand `job` over; returns the file descriptor that is readable when there is something to `receive`."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        self.place, self._last = place, Update("running")
        self._stderr.seek(0)
        self._stderr.truncate()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        return process.stdout.fileno()

    def receive(self, *, stopped: bool) -> Update:
        """Return the next update of the job; if the process has ended instead, how it did."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        whole = line.endswith(b"\n")
        self._last = Update(**json.loads(line)) if whole else self._how_it_ended(self.end(), stopped)
        if self._last.state not in ("running", "done"):
            self.end()  # the next job shall not suffer from what is left of this one
        return self._last

    def terminate(self) -> None:
        """Let the run store what it has."""
        if self._process:
            self._process.terminate()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            bufsize=0,  # so that what is readable lies in the pipe, and not in a buffer
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # Ctrl-C comes here alone, and one SIGTERM goes to each run
        )
        return self._process

    def end(self) -> int:
        """Let the process end, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
            process.stdin.close()
            try:
                return process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.returncode

    def _how_it_ended(self, code: int, stopped: bool) -> Update:
        """Return how a job ended that did not say so itself."""
        if stopped and code == -signal.SIGTERM:
            return replace(self._last, state="interrupted", text="stopped before it began")
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()[-_KEPT_LINES:]
        text = lines[-1] if lines else f"its process ended with exit code {code}"
        if code < 0:
            memory = "; the memory may not suffice for so many at once" if -code == signal.SIGKILL else ""
            text = f"its process was ended by {signal.Signals(-code).name}{memory}"
        return Update("failed", text, details="\n".join(lines), died=True)
