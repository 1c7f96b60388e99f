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
from fnostab.launch.jobs import TICK_S, Job, OnUpdate, Run, RunTogether, Update, Waiting, run_unit, supervised

#: Lines of a process's stderr that are kept, for the case that it dies.
_KEPT_LINES: Final = 20
#: Seconds that a process has to end once its last run has.
_PATIENCE_S: Final = 30.0


def run_processes(
    jobs: Sequence[Job], command: Sequence[str], on_update: OnUpdate, workers: int, finishers: int = 0
) -> list[Update]:
    """Carry out the jobs in `workers` processes of their own; returns how each ended.

    `command` starts a process that takes one job, or group of jobs, after the other (see `serve_jobs`); after one that
    does not end `done`, the next has a new process. If `finishers` is more than `workers`, so many processes carry out
    the jobs whose group has been trained. A signal, or an exception of `on_update`, stops all of them; once they have
    stored what they had, `Interrupted` or that exception is raised. The threads of several processes sleep while they
    wait, unless the environment says otherwise: together they may have as many as there are cores.
    """
    waiting = Waiting(jobs)
    count = min(max(workers, finishers), len(jobs))
    environment = os.environ | (passive_waiting(os.environ) if count > 1 else {})
    processes = [_Process(command, environment) for _ in range(count)]
    trained: set[int] = set()

    def stop() -> None:
        waiting.clear()
        for process in processes:
            process.terminate()

    def begin_next() -> None:
        for process in processes:
            if process.places:
                continue
            new = sum(not trained.issuperset(other.places) for other in processes)
            if places := waiting.take(new=new < workers):
                news.register(process.begin(places, jobs), selectors.EVENT_READ, process)
            elif not any(len(other.places) > 1 for other in processes):
                process.end()  # else there may be work for it yet

    def hear(process: _Process) -> None:
        places = process.places
        place, update = process.receive(stopped=supervisor.cause is not None)
        if place is not None:
            supervisor.hear(place, update)
        elif update.died:
            for each in supervisor.left_of(places):
                supervisor.hear(each, Update("running", f"on its own from here: {update.text}"))
        if not process.places:
            news.unregister(process.news)
            trained.update(places)
            if supervisor.cause is None:
                waiting.add_trained(supervisor.left_of(places))

    with contextlib.ExitStack() as opened, supervised(len(jobs), on_update, stop) as supervisor:
        news = opened.enter_context(selectors.DefaultSelector())
        for process in processes:
            opened.enter_context(process)
        begin_next()
        while news.get_map():
            for key, _ in news.select(TICK_S):
                hear(key.data)
            begin_next()
            supervisor.check()
    return supervisor.ends


def serve_jobs(run: Run, run_together: RunTogether | None = None) -> int:
    """Be a process of `run_processes`; returns 0.

    Each line of stdin is the JSON list of one job, or of the jobs of a group. Each line on stdout is a list of a place
    in it and an update; the end of a group has no place. Everything else that is printed goes to stderr. An empty line
    says that no more jobs come. If stdin ends without one, the process that started this one is dead: it ends as by
    SIGTERM.
    """
    news = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()

    def send(place: int | None, update: Update) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([place, asdict(update)]), file=news, flush=True)

    while line := jobs.get():
        unit = [Job(**job) for job in json.loads(line)]
        run_unit(run, run_together, unit, send)
        if len(unit) > 1:
            send(None, Update("done"))
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
    """A process that `command` starts, in `environment`, when there is a job for it, as a context.

    `places` are those of the job, or of the jobs of the group, that it carries out; `news` is the file descriptor that
    is readable when there is something to `receive`. Its stderr is kept, for the case that it dies.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.places: list[int] = []
        self.news = -1
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

    def begin(self, places: list[int], jobs: Sequence[Job]) -> int:
        """Hand over the jobs at `places`; returns `news`."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        self.places, self._last = places, Update("running")
        self._stderr.seek(0)
        self._stderr.truncate()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([asdict(jobs[place]) for place in places]).encode() + b"\n")
        self.news = process.stdout.fileno()
        return self.news

    def receive(self, *, stopped: bool) -> tuple[int | None, Update]:
        """Return the next update of a job, and its place; if the process has ended instead, how it did.

        An update without a place is about a group: it has been trained, or its process died. After what ends a job or a
        group, the process has none.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        index, update = json.loads(line) if line.endswith(b"\n") else (None, None)
        is_group = len(self.places) > 1
        place = self.places[index or 0] if index is not None or not is_group else None
        self._last = Update(**update) if update else self._how_it_ended(self.end(), stopped)
        if place is None or not (is_group or self._last.state == "running"):
            self.places = []
            if self._last.state != "done":
                self.end()  # the next job shall not suffer from what is left of this one
        return place, self._last

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
