"""Jobs as Ray tasks, on this machine or on a cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from fnostab.config import ConfigError
from fnostab.io.huge_pages import TUNABLES
from fnostab.io.openmp import OPENMP_CHOICES, passive_waiting
from fnostab.io.untrusted import first_line
from fnostab.launch.jobs import TICK_S, Job, OnUpdate, Run, RunTogether, Update, Waiting, run_job, supervised

#: Environment variables that Ray's workers need, where they run, besides those that begin so.
_PASSED_ON: Final = ("MLFLOW_", "FNOSTAB_", "AWS_", "AZURE_", "GOOGLE_")


@contextmanager
def ray_cluster(address: str | None, *, cpus: int, gpus_per_run: float = 0.0) -> Iterator[None]:
    """Be connected to the Ray cluster at `address` inside the block.

    Without `address`, nor `RAY_ADDRESS` in the environment, Ray is started on this machine, with at least `cpus` CPUs,
    and ended afterwards. Raises `ConfigError` without the extra `ray`, where no cluster answers, and where no machine
    of the cluster has the GPUs that a run takes: Ray would wait for such a machine without an end.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("`launcher` (=ray) needs Ray: pip install fnostab[ray]") from None
    local: dict[str, Any] = {}
    if address is None and "RAY_ADDRESS" not in os.environ:
        local = {"include_dashboard": False, "num_cpus": max(cpus, os.cpu_count() or 1)}
    try:
        ray.init(address=address, log_to_driver=False, **local)
    except ConnectionError as error:
        shown = address or os.environ.get("RAY_ADDRESS", "")
        raise ConfigError(
            f"`ray_address` (={shown}) must name a Ray cluster that answers: {first_line(error)}"
        ) from None
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        gpus = max((node["Resources"].get("GPU", 0.0) for node in nodes if node["Alive"]), default=0.0)
        if gpus_per_run > gpus:
            raise ConfigError(f"`gpus_per_run` (={gpus_per_run:g}) must be at most the {gpus:g} GPUs of a Ray machine")
        yield
    finally:
        ray.shutdown()


def run_ray(
    jobs: Sequence[Job],
    run: Run,
    on_update: OnUpdate,
    run_together: RunTogether | None = None,
    *,
    workers: int | None = None,
    gpus_per_run: float = 0.0,
) -> list[Update]:
    """Carry out the jobs as tasks of the Ray cluster that this process is connected to; returns how each ended.

    `workers` limits how many run at once, which otherwise the free resources do: each takes its threads as CPUs and
    `gpus_per_run`, a fraction or a number, of a GPU. A run whose worker or node is lost is begun again on another, up
    to three times; it goes on from its last checkpoint where it finds the same cache folder. The jobs of a group are
    one task, which carries out each of them once they have been trained: their checkpoints lie where it ran. The
    tracking store must be one that the workers reach. What stops the runs is raised as by `run_processes`.
    """
    import ray
    from ray.util.queue import Queue

    news: Any = Queue(actor_options={"num_cpus": 0})
    environment = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    environment.pop("MLFLOW_RUN_ID", None)
    environment |= {key: os.environ[key] for key in (TUNABLES, *OPENMP_CHOICES) if key in os.environ}
    environment |= passive_waiting(environment) if workers != 1 else {}
    task = ray.remote(max_retries=3, num_gpus=gpus_per_run, runtime_env={"env_vars": environment})(_ray_task)
    waiting = Waiting(jobs)
    places: dict[Any, list[int]] = {}

    def stop() -> None:
        waiting.clear()
        for reference in places:
            ray.cancel(reference)

    with supervised(len(jobs), on_update, stop) as supervisor:
        while True:
            while (workers is None or len(places) < workers) and (unit := waiting.take()):
                of_unit = [jobs[place] for place in unit]
                reference = task.options(num_cpus=of_unit[0].cpus).remote(run, run_together, of_unit, unit, news)
                places[reference] = unit
            if not places:
                break
            finished, _ = ray.wait(list(places), timeout=TICK_S, fetch_local=False)
            for place, update in news.get_nowait_batch(news.qsize()):
                supervisor.hear(place, update)
            for reference in finished:
                unit = places.pop(reference)
                for place, end in zip(unit, _ray_ends(ray, reference, len(unit)), strict=True):
                    supervisor.hear(place, end)
            supervisor.check()
    news.shutdown()
    return supervisor.ends


def _ray_task(
    run: Run, run_together: RunTogether | None, jobs: Sequence[Job], places: Sequence[int], news: Any
) -> list[Update]:
    """One job, or those of a group, in a Ray worker; returns how each ended."""
    ends: dict[int, Update] = {}

    def send(index: int, update: Update) -> None:
        if update.state != "running":  # how it ended, the task itself returns
            ends[index] = update
        else:
            news.put((places[index], update))

    if len(jobs) > 1:
        assert run_together is not None
        run_together(jobs, send)
    for index, job in enumerate(jobs):
        if index not in ends:
            ends[index] = run_job(run, job, partial(send, index))
    return [ends[index] for index in range(len(jobs))]


def _ray_ends(ray: Any, reference: Any, count: int) -> list[Update]:
    try:
        ends: list[Update] = ray.get(reference)
    except Exception as error:
        if isinstance(error, ray.exceptions.TaskCancelledError):
            return [Update("interrupted", "cancelled")] * count
        return [Update("failed", str(error).strip().splitlines()[-1], died=True)] * count
    return ends
