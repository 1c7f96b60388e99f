"""The networks that a run keeps: linked to the epochs that they are of, and found by what was measured there."""

import mlflow
import numpy as np
import pytest

from fnostab.config import resolve_config
from fnostab.training.validation import Validation
from fnostab.workflows.train import train_arm

#: The epoch, from 0 on, whose val_loss a run that trains well is made to report too high.
_RISE = 5


@pytest.fixture(scope="module")
def relapsed():
    """A run whose val_loss rose once, and its series."""
    results, epochs = Validation.results, iter(range(100))

    def with_a_rise(self, module):
        found = results(self, module)
        return {**found, "val_loss": 4 * found["val_loss"]} if next(epochs) == _RISE else found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Validation, "results", with_a_rise)
        done = train_arm(resolve_config({"preset": "smoke", "study": "relapsed"}), lambda line: None)
    assert done.stability.label == "relapsed"
    return mlflow.MlflowClient().get_run(done.run_id), done.history


def _models(run, **search):
    found = mlflow.search_logged_models(
        ["0"], filter_string=f"source_run_id = '{run.info.run_id}'", output_format="list", **search
    )
    return {model.name: model for model in found}


def _measured(model, key):
    return next(metric.value for metric in model.metrics if metric.key == key)


def test_a_run_keeps_its_best_network_and_the_one_from_before_an_accident(relapsed):
    run, history = relapsed
    models = _models(run)
    assert models.keys() == {"model", "before_accident"}
    best = int(np.argmin(history.val_loss))
    assert best > _RISE  # else the test shows nothing
    assert _measured(models["model"], "val/loss") == pytest.approx(history.val_loss[best])
    assert _measured(models["before_accident"], "val/loss") == pytest.approx(history.val_loss[_RISE - 1])
    steps = history.steps // len(history.val_loss)
    found = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert found == {
        models["model"].model_id: steps * (best + 1) - 1,
        models["before_accident"].model_id: steps * _RISE - 1,
    }


def test_networks_are_found_in_the_order_of_their_loss(relapsed):
    run, _ = relapsed
    order = [{"field_name": "metrics.val/loss", "ascending": True}]
    assert list(_models(run, order_by=order)) == ["model", "before_accident"]
    order[0]["ascending"] = False
    assert list(_models(run, order_by=order)) == ["before_accident", "model"]
    query = f"source_run_id = '{run.info.run_id}' AND metrics.best_val_loss > 0 AND params.`model.arch` = 'hybrid'"
    (found,) = mlflow.search_logged_models(["0"], filter_string=query, output_format="list")
    assert found.name == "model"
    assert _measured(found, "test/r_factor") == run.data.metrics["test/r_factor"]


def test_each_is_the_network_of_its_own_epoch_and_can_be_loaded(relapsed):
    run, _ = relapsed
    example = np.random.default_rng(0).poisson(5, (2, 64, 64)).astype(np.float32)
    N = resolve_config({"preset": "smoke"}).data.N
    made = {name: mlflow.pyfunc.load_model(model.model_uri) for name, model in _models(run).items()}
    given = {name: network.predict(example[:, :N, :N]) for name, network in made.items()}
    assert given["model"].shape == given["before_accident"].shape == (2, N, N, 2)
    assert not np.allclose(given["model"], given["before_accident"])


def test_no_step_of_a_series_is_there_twice_for_its_models(relapsed):
    run, history = relapsed
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/loss")
    assert sorted({point.step for point in points}) == sorted(point.step for point in points)
    assert len(points) == len(history.val_loss)
