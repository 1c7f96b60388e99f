"""Studies of two small arms whose runs are recorded, as if they had been trained."""

import mlflow

from fnostab.config import ArmConfig
from fnostab.launch import Update
from fnostab.study.plan import plan_table
from fnostab.workflows import study

#: Two arms, as a file of arms; another is a line more.
ARMS = """
preset: smoke
seed: 1
arms:
  - {name: a, arch: hybrid}
  - {name: b, arch: cnn}
"""


def build_dataset():
    """The dataset that the runs of `ARMS` say they saw."""
    return study.build_dataset(plan_table([{"name": "a"}], {}, {"preset": "smoke"}, {}).common.data)


def record_run(job, send, dataset, loss, write=lambda client, run_id: None):
    """Record the run of `job` as converged with its best val_loss; `write` puts more into it before it ends."""
    config, client = ArmConfig.model_validate(job.config), mlflow.MlflowClient()
    tags = {"study": config.study, "arm": config.arm, "seed": str(config.seed), "verdict": "converged"}
    tags |= {"dataset_sha256": dataset.sha256, "config_sha256": config.sha256(), "arch": config.model.arch}
    run_id = client.create_run("0", tags={**tags, **job.tags}).info.run_id
    client.log_metric(run_id, "best_val_loss", loss)
    write(client, run_id)
    client.set_terminated(run_id)
    send(Update("done", "told", val_loss=loss, verdict="converged", run_id=run_id))
