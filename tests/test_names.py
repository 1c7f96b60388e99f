"""The table of tracked names: what a run logs is in it, the guide tells it, and a store of files can hold it."""

import re
from dataclasses import fields
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Metric

from fnostab.config import resolve_config
from fnostab.health.history import EPOCH_SERIES, STEP_SERIES, History
from fnostab.metrics import SCALARS
from fnostab.models.layers import block_statistics, norm_statistics
from fnostab.models.network_stages import stage_grad_norms, stage_statistics
from fnostab.models.registry import GENERATORS, build_generator
from fnostab.ranking.arms import NUMBER_COLUMNS
from fnostab.study.names import METRIC, NUMBERS, TAGS

_GUIDE = Path(__file__).resolve().parents[1] / "docs" / "user-guide.md"


def _network(arch):
    torch.manual_seed(0)
    config = resolve_config({"preset": "smoke", "arch": arch, "width": 4, "model.modes": 4})
    return build_generator(config.model, 16)


def _watched(network):
    """The names of all numbers of stages that a run with `network` may be watched by."""
    norms = {name: torch.ones(()) for name, _ in network.named_parameters()}
    return stage_statistics(network, lambda: network(torch.rand(2, 1, 16, 16))) | stage_grad_norms(network, norms)


def _logged(network):
    """The names of all numbers that a run with `network` may log."""
    observed = block_statistics(network, lambda: network(torch.rand(1, 1, 16, 16))) | norm_statistics(network)
    names = {number.metric for number in NUMBERS if "<" not in number.metric}
    names |= {f"health/{name}" for name in observed}
    names |= {f"watch/{name}" for name in _watched(network)}
    return names | {f"weight_grad_norm/{name}" for name, _ in network.named_parameters()}


@pytest.mark.parametrize("arch", GENERATORS)
def test_no_metrics_name_is_a_path_under_another(arch):
    names = _logged(_network(arch))
    folders = {name.rpartition("/")[0] for name in names}
    folders |= {folder.rpartition("/")[0] for folder in folders}
    assert names & folders == set()


def test_a_store_of_files_takes_every_number_of_a_stable_network(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3.17 refuses such a store
    client = mlflow.MlflowClient(f"file://{tmp_path / 'mlruns'}")
    run_id = client.create_run("0").info.run_id
    names = sorted(_logged(_network("stable_hybrid")))
    for start in range(0, len(names), 1000):
        client.log_batch(run_id, [Metric(name, 0.5, 0, 0) for name in names[start : start + 1000]])
    assert client.get_run(run_id).data.metrics.keys() == set(names)


@pytest.mark.parametrize("arch", GENERATORS)
def test_every_number_that_a_network_is_observed_by_is_in_the_table(arch):
    network = _network(arch)
    observed = block_statistics(network, lambda: network(torch.rand(1, 1, 16, 16))) | norm_statistics(network)
    known = {number.metric.partition("<")[0] for number in NUMBERS if number.when == "observed"}
    assert {f"health/{name.partition('/')[0]}" + "/" * ("/" in name) for name in observed} <= known


def test_every_number_that_a_stage_is_watched_by_is_in_the_table_and_no_other():
    known = {number.metric.partition("<")[0] for number in NUMBERS if number.metric.startswith("watch/")}
    found = {f"watch/{name.partition('/')[0]}/" for name in _watched(_network("hybrid"))}
    assert found | {"watch/loss", "watch/object_std_ratio"} == known


def test_series_evidence_and_columns_have_a_name_in_the_store():
    assert {*STEP_SERIES, *EPOCH_SERIES} - {"train_loss"} <= METRIC.keys()
    assert {*NUMBER_COLUMNS, "best_val_loss"} - {"r_stitched"} <= {
        number.name for number in NUMBERS if number.when == "end"
    }
    numbers = {entry.name for entry in fields(History) if entry.type in (float, "float")}
    assert numbers <= METRIC.keys()
    assert {f"test/{name}" for name in SCALARS} <= set(METRIC.values())


def test_no_name_is_given_twice():
    assert len({number.metric for number in NUMBERS}) == len(NUMBERS)
    assert len(set(METRIC.values())) == len(METRIC)


def test_the_user_guide_names_all_of_the_table_and_no_others():
    code = " ".join(re.findall(r"`([^`\n]+)`", _GUIDE.read_text()))
    told = set(
        re.findall(r"(?<![\w/.])(?:(?:train|grad|val|test|health|stability|watch|weight_grad_norm)/[\w/<>]+)", code)
    )
    told |= {"lr", "best_val_loss", "samples_per_s"} & set(code.split())
    assert told == {number.metric for number in NUMBERS}
    (tags,) = re.findall(r"^\| tags \| `([^`]+)`", _GUIDE.read_text(), flags=re.MULTILINE)
    assert set(tags.split()) == TAGS.keys()


def test_a_history_of_an_earlier_version_is_read_under_todays_names():
    history = History()
    history.load({"health": {"norm_weight_absmax": [0.5], "norm_weight_absmax/bottleneck": [0.5], "act_mean/x": [1.0]}})
    assert history.health.keys() == {"norm_weight_absmax", "norm_weight_absmax_of/bottleneck", "act_mean/x"}


def test_the_tags_of_a_run_are_in_the_table(fresh_store):
    from fnostab.dataset import load_or_build
    from fnostab.tracking.tracker import run_tags

    config = resolve_config({"preset": "smoke"})
    assert run_tags(config, load_or_build(config.data), "cpu").keys() <= TAGS.keys()
