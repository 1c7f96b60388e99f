"""Thousands of runs in a tracking server, tagged as real ones are."""

import json
import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunTag
from servers import query

from fnostab.config import resolve_config

_DATASET = "5f" * 32
_CONSTANT, _FLOOR = 0.164, 0.011
#: 20 metrics a run, with those that `compare` reads.
METRICS = (
    *("best_val_loss", "test/amp_ssim", "test/phase_ssim", "test/amp_mae", "test/phase_mae"),
    *("grad/norm_median", "grad/norm_max", "val/plateau_left_epoch", "val/loss", "val/amp_ssim"),
    *("train/loss", "grad/norm_preclip", "grad/norm_postclip", "grad/clipped_fraction", "lr"),
    *("test/amp_psnr", "test/frc50", "test/r_factor", "test/r_factor_patch", "samples_per_s"),
)


def make_runs(
    client: mlflow.MlflowClient, study: str, keys: Iterable[tuple[str, int]], threads: int = 8
) -> dict[tuple[str, int], str]:
    """A finished run for each (arm, seed), with tags, parameters and `METRICS`; the ids of the runs."""
    params = [Param(key, str(value)) for key, value in resolve_config({"preset": "smoke"}).flat().items()]

    def make(key: tuple[str, int]) -> str:
        arm, seed = key
        rng = _rng(key)
        failed = rng.random() < 0.1
        loss = _CONSTANT if failed else 0.02 * float(rng.lognormal(0.01 * int(arm.removeprefix("arm")), 0.2))
        tags = {"study": study, "arm": arm, "arch": "hybrid", "clip_algo": "norm", "seed": str(seed)}
        tags |= {"dataset_sha256": _DATASET, "verdict": "stagnated" if failed else "converged"}
        tags |= {"verdict_reason": "progress reached 0.93 at epoch 48 and ended at 0.92", "device": "cpu"}
        tags |= {"fnostab_version": "0.1.0", "git_commit": "0" * 40, "mlflow.runName": f"{arm}-seed{seed}"}
        run = client.create_run("0", tags=tags)
        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, loss * (1 + place), now, 0) for place, name in enumerate(METRICS)]
        client.log_batch(run.info.run_id, metrics=metrics, params=params, tags=[RunTag("config_sha256", arm)])
        client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)

    keys = list(keys)
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(keys, pool.map(make, keys), strict=True))


def copy_runs(database_uri: str, study: str, into: str, times: int, seeds: int) -> dict[tuple[str, int], str]:
    """Copy each run of `study`, whose seeds are 0 to `seeds` - 1, `times` times into the study `into`; the new ids.

    It is done within the database: the client takes 0.1 s a run. The copies have ids and seeds of their own, and values
    0.1 % apart.
    """
    found = query(database_uri, "SELECT run_uuid FROM tags WHERE key = 'study' AND value = %s", study)
    run_ids = [run_id for (run_id,) in found]
    new_id = f"md5(t.run_uuid || '{into}' || k)"
    value = "t.value * (1 + 0.001 * k)"
    seed, name = f"(t.value::int + k * {seeds})::text", f"'{into}'"
    changed = {
        "run_uuid": new_id,
        "artifact_uri": f"replace(t.artifact_uri, t.run_uuid, {new_id})",
        "tags.value": f"CASE t.key WHEN 'seed' THEN {seed} WHEN 'study' THEN {name} ELSE t.value END",
        "metrics.value": value,
        "latest_metrics.value": value,
    }
    for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
        statement = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
        columns = [name for (name,) in query(database_uri, statement, table)]
        values = [changed.get(name) or changed.get(f"{table}.{name}") or f't."{name}"' for name in columns]
        names = ", ".join(f'"{name}"' for name in columns)
        statement = f"INSERT INTO {table} ({names}) SELECT {', '.join(values)} FROM {table} t, "
        statement += f"generate_series(0, {times - 1}) k WHERE t.run_uuid = ANY(%s)"
        query(database_uri, statement, run_ids)
    arms_and_seeds = (
        "SELECT arm.value, seed.value, arm.run_uuid FROM tags arm JOIN tags seed USING (run_uuid) "
        "JOIN tags study USING (run_uuid) "
        "WHERE arm.key = 'arm' AND seed.key = 'seed' AND study.key = 'study' AND study.value = %s"
    )
    return {(arm, int(seed)): run_id for arm, seed, run_id in query(database_uri, arms_and_seeds, into)}


def history_of(key: tuple[str, int], epochs: int = 10, steps: int = 100) -> str:
    """The text of a `history.json` as a run of this arm and seed could have."""
    rng = _rng(key)
    t = np.arange(1, epochs + 1)
    loss = _FLOOR + (_CONSTANT - _FLOOR) * np.exp(-t / (0.12 * epochs)) * rng.lognormal(0, 0.05, epochs)
    norms = rng.lognormal(-1, 0.4, steps)
    constants = {"val_loss_constant": _CONSTANT, "val_loss_floor": _FLOOR, "val_loss_mean_pattern": 0.19}
    per_epoch = {name: loss.round(6).tolist() for name in ("train_loss", "val_loss", "lr", "object_std_ratio")}
    names = ("loss_step", "grad_norm_preclip", "grad_norm_postclip", "clipped_fraction")
    return json.dumps(per_epoch | {name: norms.round(5).tolist() for name in names} | constants)


def put_history(artifacts: Path, run_id: str, text: str) -> None:
    """Write a `history.json` into the folder where the server keeps the artifacts of a run of experiment 0."""
    folder = artifacts / "0" / run_id / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(text)


def log_points(client: mlflow.MlflowClient, run_id: str, points: int) -> None:
    """`points` values of one series, as training writes them."""
    now = time.time_ns() // 1_000_000
    for start in range(0, points, 1000):
        rows = [Metric("train/loss", math.exp(-step / points), now, step) for step in range(start, start + 1000)]
        client.log_batch(run_id, metrics=rows)


def _rng(key: tuple[str, int]) -> np.random.Generator:
    arm, seed = key
    return np.random.default_rng([int(arm.removeprefix("arm")), seed])
