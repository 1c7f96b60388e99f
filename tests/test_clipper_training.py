"""Rules with a history, and rules of the user's own, in training: what they do, and that a killed run goes on."""

import hashlib
import re
from pathlib import Path

import lightning
import mlflow
import numpy as np
import pytest
import torch
from small_runs import KillAfter, fit, new_module

from fnostab.config import ConfigError, resolve_config
from fnostab.training.checks import check_clipping
from fnostab.workflows.compare import compare_study
from fnostab.workflows.train import train_arm

_TINY = {
    **{"preset": "smoke", "data.object_size": 64, "data.max_train_patches": 24, "data.max_val_patches": 8},
    **{"model.width": 4, "optim.lr": 1e-3, "train.epochs": 3, "train.batch_size": 4, "train.overlap_weight": 0.0},
}
_OPTIONS = {"zclip": {"warmup": 4}, "adagc": {"warmup": 3, "abs": 1e-3}, "skip": {"window": 5, "least": 2}}

_RULE = """
import torch

def growing(module, value, state):
    state["steps"] = state.get("steps", torch.zeros(())) + 1
    for p in module.parameters():
        p.grad *= value / state["steps"].to(p.device)
"""


def _config(algo, value, **overrides):
    options = {f"clip.options.{key}": option for key, option in _OPTIONS.get(algo, {}).items()}
    return resolve_config({"clip_algo": algo, "clip_val": value, **options, **overrides}, base=_TINY)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "rules.py").write_text(_RULE)
    return f"{tmp_path}/rules.py:growing"


@pytest.mark.parametrize(
    ("algo", "value"), [("zclip", 0.5), ("adagc", 0.9), ("skip", 1.1), ("own", 0.9)], ids=lambda value: str(value)
)
def test_a_killed_run_goes_on_with_the_rules_history_bit_for_bit(tmp_path, own, algo, value):
    config = _config(own if algo == "own" else algo, value)
    whole, history, _ = fit(config, tmp_path / "whole")
    assert sum(history.clipped_fraction) > 0
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillAfter(8)])
    resumed, continued, _ = fit(config, tmp_path / "killed", new_module(config), resume=True)
    assert continued.to_json() == history.to_json()
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_checkpoint_from_before_rules_had_a_history_is_gone_on_with(tmp_path):
    config = _config("zclip", 2.5)
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path, checkpoint_every_s=0.0, extra=[KillAfter(8)])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert int(checkpoint.pop("clipping")["count"]) > 0
    torch.save(checkpoint, tmp_path / "last.ckpt")
    _, history, _ = fit(config, tmp_path, resume=True)
    assert history.steps == 18


class _Spike(lightning.Callback):
    """Multiplies the gradients of one step; notes weights and moments around it."""

    def __init__(self, step):
        self.step = step

    def _moments(self, trainer):
        states = trainer.optimizers[0].state.values()
        return [value.clone() for state in states for value in state.values()]

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step:
            for parameter in module.generator.parameters():
                parameter.grad *= 1e3
            self.before = [*(value.clone() for value in module.state_dict().values()), *self._moments(trainer)]

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step + 1:
            self.after = [*(value.clone() for value in module.state_dict().values()), *self._moments(trainer)]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "stable_adamw"])
def test_a_step_that_is_left_out_moves_neither_weights_nor_moments_and_training_goes_on(tmp_path, name):
    spike = _Spike(5)
    config = _config("skip", 10.0, **{"optim.name": name, "optim.lr": 1e-4})
    module, history, _ = fit(config, tmp_path, extra=[spike])
    assert all(torch.equal(a, b) for a, b in zip(spike.before, spike.after, strict=True))
    assert [step for step, fraction in enumerate(history.clipped_fraction) if fraction] == [5]
    assert history.grad_norm_postclip[5] == 0
    assert history.grad_norm_preclip[5] > 100 * np.median(history.grad_norm_preclip)
    assert history.events == {}
    assert history.grad_norm_postclip[6] == history.grad_norm_preclip[6]


def test_excluded_parameters_are_not_clipped_while_training(tmp_path):
    _, history, _ = fit(_config("norm", 1e-9, **{"clip.exclude": "out.*"}), tmp_path)
    after = np.array(history.grad_norm_postclip)
    assert (after > 1e-6).all()
    assert (after < np.array(history.grad_norm_preclip)).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clip.exclude": "last.*"}, r"`clip.exclude` \(=last.\*\) must match a parameter's name, as \S+"),
        ({"clip.options.alpha": 2}, r"`clip.options.alpha` \(=2\) must be an option of norm, which takes none"),
        ({"clip_algo": "nowhere.rules:half"}, r"`clip.algo` \(=nowhere.rules:half\) must be in a module .*"),
        ({"clip_algo": "skip", "clip.options.least": 0}, r"`clip.options.least` \(=0\) must be >= 1"),
        ({"clip_algo": "json:dumps"}, r"`clip.algo` \(=json:dumps\) must take \(module, value, state\): .*"),
        ({"clip_algo": "json:JSONDecodeError"}, r"`clip.algo` \(=json:JSONDecodeError\) must not raise, .*"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_clipping(resolve_config(keys, base=_TINY))


_RUN = {**_TINY, "train.epochs": 1, "train.artifacts": "numbers", "study": "own", "train.threads": 1}


def _example():
    """The rule that docs/clipping.md shows."""
    page = (Path(__file__).parents[1] / "docs" / "clipping.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "def halve_outliers" in block)


def _train(seed=0, **keys):
    values = {f"clip.{key}": value for key, value in keys.items()} | {"seed": seed}
    result = train_arm(resolve_config(values, base=_RUN), [].append)
    return mlflow.get_run(result.run_id).data, result


def test_the_rule_of_the_docs_trains_and_its_source_is_in_the_run(fresh_store):
    Path("rules.py").write_text(_example())
    run, result = _train(algo="./rules.py:halve_outliers", val=0.5, **{"options.keep": "0.5"})
    assert 0 < sum(result.history.clipped_fraction) <= 6
    assert run.tags["clip_algo"] == "rules.py:halve_outliers"
    assert run.tags["arm"] == "hybrid-halve_outliers"
    assert run.params["clip.options.keep"] == "0.5"
    assert run.params["clip.source_sha256"] == hashlib.sha256(_example().encode()).hexdigest()
    path = mlflow.artifacts.download_artifacts(run_id=result.run_id, artifact_path="code/rules.py")
    assert Path(path).read_text() == _example()


def test_runs_of_an_arm_whose_rule_has_changed_are_not_compared(fresh_store):
    rule = "def half(module, value, state):\n    for p in module.parameters(): p.grad *= "
    for seed, factor in enumerate((0.5, 0.25)):
        Path("rules.py").write_text(f"{rule}{factor}\n")
        _train(seed, algo="./rules.py:half")
    with pytest.raises(
        ConfigError, match=r"^`clip.source_sha256` of study own must be one in all runs of arm .*-half, as"
    ):
        compare_study("own", register=False)


def test_the_folder_of_a_rule_is_no_part_of_a_runs_identity():
    first, second = (resolve_config({"clip.algo": f"{folder}/rules.py:half"}) for folder in (".", "/elsewhere"))
    assert first.sha256() == second.sha256()
    assert first.sha256() != resolve_config({"clip.algo": "./rules.py:quarter"}).sha256()
