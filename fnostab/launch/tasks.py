"""Jobs as Ray tasks, on this machine or on a cluster."""

import os
from collections.abc import Sequence
from typing import Any, Final

from fnostab.io.endings import Interrupted
from fnostab.launch.jobs import NOT_STARTED, TICK_S, Job, OnUpdate, Run, Update, collected_signals, run_job

#: Environment variables that Ray's workers need, where they run, besides those that begin so.
_PASSED_ON: Final = ("MLFLOW_", "FNOSTAB_", "AWS_", "AZURE_", "GOOGLE_")


def run_ray(
    jobs: Sequence[Job],
    run: Run,
    on_update: OnUpdate,
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
    answers, and `Interrupted` after a signal.
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
        with collected_signals() as caught:
            return _ray_tasks(ray, Queue, jobs, run, on_update, workers, gpus_per_run, caught)
    finally:
        ray.shutdown()


def _ray_tasks(
    ray: Any,
    queue_class: Any,
    jobs: Sequence[Job],
    run: Run,
    on_update: OnUpdate,
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
        finished, _ = ray.wait(list(places), timeout=TICK_S, fetch_local=False)
        _pass_on(news, on_update)
        for reference in finished:
            place = places.pop(reference)
            ends[place] = _ray_end(ray, reference)
            _pass_on(news, on_update)
            on_update(place, ends[place])
        if caught and not stopping:
            stopping = True
            waiting.clear()
            for reference in places:
                ray.cancel(reference)
    news.shutdown()
    if caught:
        raise Interrupted(caught[0])
    return [ends.get(place, NOT_STARTED) for place in range(len(jobs))]


def _pass_on(news: Any, on_update: OnUpdate) -> None:
    for place, update in news.get_nowait_batch(news.qsize()):
        if update.state == "running":  # how it ended, the task itself returns
            on_update(place, update)


def _ray_task(run: Run, job: Job, place: int, news: Any) -> Update:
    """One job in a Ray worker."""
    return run_job(run, job, lambda update: news.put((place, update)))


def _ray_end(ray: Any, reference: Any) -> Update:
    try:
        end: Update = ray.get(reference)
    except Exception as error:
        if isinstance(error, ray.exceptions.TaskCancelledError):
            return Update("interrupted", "cancelled")
        return Update("failed", str(error).strip().splitlines()[-1])
    return end
