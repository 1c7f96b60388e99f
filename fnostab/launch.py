"""Where the runs of a study execute: in this process, in several on this machine, or as Ray tasks.

What one run does is somebody else's: this module starts runs, hears how they stand, and ends them. A run is a `Job`,
carried out by a function `(Job, Tell) -> None`; it tells how it stands by `Update`s, the last of which is not
`running`. Whatever happens to one run, the others go on.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any, Final, Literal

Launcher = Literal["inline", "processes", "ray"]
State = Literal["running", "done", "failed", "interrupted"]

#: Seconds between two looks for news and for signals.
_TICK_S: Final = 0.2
#: Lines that are kept of what a process said, for the case that it dies.
_KEPT_LINES: Final = 20
#: Environment variables that Ray's workers need, where they run, besides those that begin so.
_PASSED_ON: Final = ("MLFLOW_", "FNOSTAB_", "AWS_", "AZURE_", "GOOGLE_")


@dataclass(frozen=True)
class Where:
    """Where runs execute; `workers` None: as many as cores and memory allow, one where there is a GPU."""

    launcher: Launcher = "processes"
    workers: int | None = None
    gpus_per_run: float = 0.0
    ray_address: str | None = None


@dataclass(frozen=True)
class Job:
    """One run: `config` as JSON takes it, MLflow tags for it, and the CPUs that it keeps busy."""

    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 1


@dataclass(frozen=True)
class Update:
    """How a run stands; `done` whatever its verdict, `failed` if it has none.

    `text` is for people, in one line; `details`, such as a traceback, for those who mend it.
    """

    state: State
    text: str = ""
    epoch: int = 0
    epochs: int = 0
    val_loss: float | None = None
    seconds_left: float | None = None
    verdict: str | None = None
    run_id: str | None = None
    pid: int | None = None
    details: str = ""


Tell = Callable[[Update], None]
Run = Callable[[Job, Tell], None]
Watch = Callable[[int, Update], None]


class Stopped(BaseException):
    """A signal came, and every run has ended."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def run_inline(jobs: Sequence[Job], run: Run, watch: Watch) -> list[Update]:
    """Carry out the jobs one after the other in this process; returns how each ended.

    A signal is the run's own affair: one that ends `interrupted` ends the rest, which are not begun.
    """
    ends: list[Update] = []
    for place, job in enumerate(jobs):
        ends.append(_carry_out(run, job, partial(watch, place)))
        if ends[-1].state == "interrupted":
            break
    return ends + [_NOT_BEGUN] * (len(jobs) - len(ends))


def run_processes(jobs: Sequence[Job], command: Sequence[str], watch: Watch, workers: int) -> list[Update]:
    """Carry out the jobs in `workers` processes of their own; returns how each ended.

    `command` starts a process that takes one job after the other (see `serve_jobs`); after one that does not end
    `done`, the next has a new process. SIGTERM and Ctrl-C end all of them, and raise `Stopped` once they have stored
    what they had.
    """
    news: queue.SimpleQueue[tuple[int, Update]] = queue.SimpleQueue()
    waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for place, job in enumerate(jobs):
        waiting.put((place, job))
    ends = [_NOT_BEGUN] * len(jobs)
    processes = [_Process(command) for _ in range(min(workers, len(jobs)))]
    stopping = threading.Event()

    def work(process: _Process) -> None:
        with process, contextlib.suppress(queue.Empty):
            while not stopping.is_set():
                place, job = waiting.get_nowait()
                ends[place] = process.carry_out(job, partial(_put, news, place), stopping)

    with _signals() as caught, ThreadPoolExecutor(max(1, len(processes))) as pool:
        futures = [pool.submit(work, process) for process in processes]
        while not all(future.done() for future in futures) or not news.empty():
            with contextlib.suppress(queue.Empty):
                watch(*news.get(timeout=_TICK_S))
            if caught and not stopping.is_set():
                stopping.set()
                for process in processes:
                    process.terminate()
        for future in futures:
            future.result()
    if caught:
        raise Stopped(caught[0])
    return ends


def _put(news: "queue.SimpleQueue[tuple[int, Update]]", place: int, update: Update) -> None:
    news.put((place, update))


def serve_jobs(run: Run) -> int:
    """Be a process of `run_processes`: read jobs from stdin, a JSON line each, and tell on stdout; returns 0.

    Everything else that is printed goes to stderr. The process ends when the one that started it closes the pipe or
    dies, however that came about: at once between two jobs, as after SIGTERM during one.
    """
    news = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    busy, alone = threading.Lock(), threading.Event()
    threading.Thread(target=_read_jobs, args=(jobs, busy, alone), daemon=True).start()

    def tell(update: Update) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asdict(update)), file=news, flush=True)

    while line := jobs.get():
        with busy:
            if alone.is_set():
                break
            _carry_out(run, Job(**json.loads(line)), tell)
    return 0


def _read_jobs(jobs: "queue.SimpleQueue[bytes]", busy: threading.Lock, alone: threading.Event) -> None:
    """Hand on the lines of stdin, and an empty one at its end; what is being done then is stopped.

    From the file descriptor: a thread that waits in `sys.stdin` when the process ends makes Python abort.
    """
    text = b""
    while piece := os.read(0, 2**16):
        *lines, text = (text + piece).split(b"\n")
        for line in lines:
            jobs.put(line)
    alone.set()
    jobs.put(b"")
    if busy.locked():
        os.kill(os.getpid(), signal.SIGTERM)


def _carry_out(run: Run, job: Job, tell: Tell) -> Update:
    """Carry out `job` in this process and pass on what it tells; returns the last of it."""
    last = Update("failed", "it said nothing")

    def listen(update: Update) -> None:
        nonlocal last
        last = update
        tell(update)

    run(job, listen)
    return last


def run_ray(
    jobs: Sequence[Job],
    run: Run,
    watch: Watch,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_run: float = 0.0,
) -> list[Update]:
    """Carry out the jobs as Ray tasks; returns how each ended.

    Without `address`, nor `RAY_ADDRESS` in the environment, Ray is started on this machine and ended afterwards.
    `workers` limits how many run at once, which otherwise the free resources do: each takes its threads as CPUs and
    `gpus_per_run`, a fraction or a number, of a GPU. A run whose worker or node is lost is begun again on another, up
    to three times; it goes on from its last checkpoint where it finds the same cache folder. The tracking store must be
    one that the workers reach. Raises `ModuleNotFoundError` without the extra `ray`, `ConnectionError` where no cluster
    answers, and `Stopped` after a signal.
    """
    import ray
    from ray.util.queue import Queue

    if ray.is_initialized():
        raise RuntimeError("this process is connected to Ray already")
    environment = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    environment.pop("MLFLOW_RUN_ID", None)
    local: dict[str, Any] = {}
    if address is None and "RAY_ADDRESS" not in os.environ:
        local = {"include_dashboard": False, "num_cpus": max((workers or 1) * jobs[0].cpus, os.cpu_count() or 1)}
    ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": environment}, **local)
    try:
        with _signals() as caught:
            return _ray_tasks(ray, Queue, jobs, run, watch, workers, gpus_per_run, caught)
    finally:
        ray.shutdown()


def _ray_tasks(
    ray: Any,
    queue_class: Any,
    jobs: Sequence[Job],
    run: Run,
    watch: Watch,
    workers: int | None,
    gpus_per_run: float,
    caught: list[int],
) -> list[Update]:
    news = queue_class(actor_options={"num_cpus": 0})
    task = ray.remote(max_retries=3)(_ray_task)
    waiting = list(enumerate(jobs))[::-1]
    places: dict[Any, int] = {}
    ends: dict[int, Update] = {}
    stopping = False
    while waiting or places:
        while waiting and (workers is None or len(places) < workers):
            place, job = waiting.pop()
            options = task.options(num_cpus=job.cpus, num_gpus=gpus_per_run)
            places[options.remote(run, job, place, news)] = place
        finished, _ = ray.wait(list(places), timeout=_TICK_S, fetch_local=False)
        _tell_news(news, watch)
        for reference in finished:
            place = places.pop(reference)
            ends[place] = _ray_end(ray, reference)
            _tell_news(news, watch)
            watch(place, ends[place])
        if caught and not stopping:
            stopping = True
            waiting.clear()
            for reference in places:
                ray.cancel(reference)
    news.shutdown()
    if caught:
        raise Stopped(caught[0])
    return [ends.get(place, _NOT_BEGUN) for place in range(len(jobs))]


def _tell_news(news: Any, watch: Watch) -> None:
    for place, update in news.get_nowait_batch(news.qsize()):
        if update.state == "running":  # how it ended, the task itself returns
            watch(place, update)


def _ray_task(run: Run, job: Job, place: int, news: Any) -> Update:
    """One job in a Ray worker."""
    return _carry_out(run, job, lambda update: news.put((place, update)))


def _ray_end(ray: Any, reference: Any) -> Update:
    try:
        end: Update = ray.get(reference)
    except Exception as error:
        if isinstance(error, ray.exceptions.TaskCancelledError):
            return Update("interrupted", "cancelled")
        return Update("failed", str(error).strip().splitlines()[-1])
    return end


_NOT_BEGUN: Final = Update("interrupted", "not begun")


class _Process:
    """A process that `command` starts when there is a job for it; it ends if this one does.

    What it says on stderr is kept, for the case that it dies.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Process":
        self._said = self._open.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        return self

    def __exit__(self, *exception: object) -> None:
        with self._open:
            self._end()

    def carry_out(self, job: Job, tell: Tell, stopping: threading.Event) -> Update:
        """Have `job` carried out; passes on what is told, and returns the last of it."""
        process = self._process or self._start()
        self._said.seek(0)
        self._said.truncate()
        if stopping.is_set():  # `terminate` may have come before there was a process
            process.terminate()
        last = Update("running")
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asdict(job)), file=process.stdin, flush=True)
        while last.state == "running" and (line := process.stdout.readline()):
            last = Update(**json.loads(line))
            if last.state == "running":
                tell(last)
        if last.state == "running":
            last = self._how_it_ended(self._end(), last, stopping)
        elif last.state != "done":
            self._end()  # the next one shall not suffer from what is left of this one
        tell(last)
        return last

    def terminate(self) -> None:
        """Have it store what it has."""
        if process := self._process:
            process.terminate()

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,  # Ctrl-C comes here alone, and one SIGTERM goes to each run
        )
        return self._process

    def _end(self) -> int:
        """Let the process end, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process, contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.close()
        return process.returncode

    def _how_it_ended(self, code: int, last: Update, stopping: threading.Event) -> Update:
        """How a job ended that did not say so itself."""
        if stopping.is_set() and code == -signal.SIGTERM:
            return replace(last, state="interrupted", text="stopped before it began")
        self._said.seek(0)
        words = self._said.read().strip().splitlines()[-_KEPT_LINES:]
        return Update("failed", _how_it_died(code, words), run_id=last.run_id, details="\n".join(words))


def _how_it_died(code: int, words: Sequence[str]) -> str:
    if code < 0:
        memory = "; the memory may not suffice for so many at once" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{memory}"
    return words[-1] if words else f"its process ended with exit code {code}"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C instead of dying from them."""
    caught: list[int] = []

    def catch(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)

    previous = {signum: signal.signal(signum, catch) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
