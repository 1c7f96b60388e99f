"""The monitor of a plain loop: what it records, clips and leaves out, how runs end, what it refuses."""

import hashlib
import math

import pytest
import torch
from monitored import PLACE, artifact, data, gradients, points, stored, toy, train
from torch import nn

from fnostab import monitor
from fnostab.clipping import clip_gradients_
from fnostab.gradients import total_norm
from fnostab.health import judge


def test_every_step_has_its_loss_and_norms_in_the_history_and_the_store():
    model, optimizer = toy()
    reference, steps = toy()
    losses, norms = [], []
    for step in range(8):
        steps.zero_grad()
        losses.append(float(gradients(reference, step).detach()))
        norms.append(float(total_norm(reference)))
        steps.step()
    run = train(model, optimizer, epochs=2)
    assert run.history.loss_step == losses
    assert run.history.grad_norm_preclip == run.history.grad_norm_postclip == norms
    assert run.history.clipped_fraction == [0.0] * 8
    assert points(run, "train/loss") == list(enumerate(losses))
    assert points(run, "grad/norm_preclip") == list(enumerate(norms))
    assert artifact(run, "history.json")["loss_step"] == losses


def test_a_monitored_training_has_the_weights_of_an_unmonitored_one_bit_for_bit():
    model, optimizer = toy()
    reference, steps = toy()
    for step in range(8):
        steps.zero_grad()
        gradients(reference, step)
        steps.step()
    train(model, optimizer, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


@pytest.mark.parametrize("clip", [("norm", 0.1), ("agc", 0.01), {"algorithm": "value", "value": 1e-3}])
def test_gradients_are_clipped_by_the_rule_before_the_step(clip):
    model, optimizer = toy(kind=torch.optim.SGD)
    reference, steps = toy(kind=torch.optim.SGD)
    run = train(model, optimizer, epochs=1, steps=1, clip=clip)
    gradients(reference)
    stats = clip_gradients_(reference, *(clip.values() if isinstance(clip, dict) else clip))
    steps.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    assert [run.history.grad_norm_preclip, run.history.grad_norm_postclip, run.history.clipped_fraction] == [
        [float(value)] for value in stats[:3]
    ]
    assert run.history.grad_norm_postclip[0] < run.history.grad_norm_preclip[0]


def test_norms_of_single_parameters_and_outputs_of_blocks_are_recorded_at_an_interval():
    model, optimizer = toy()
    outputs = []
    model.layers[0].register_forward_hook(lambda *call: outputs.append(call[-1].detach()))
    run = train(model, optimizer, epochs=1, steps=5, blocks=["layers.*"], layers_every_steps=2)
    assert [step for step, _ in points(run, "weight_grad_norm/layers.0.weight")] == [0, 2, 4]
    found = points(run, "health/act_std/layers.0")
    assert [step for step, _ in found] == [0, 2, 4, 5]  # the last is the epoch's
    expected = [float(outputs[step].std(correction=0)) for step in (0, 2, 4, 4)]
    assert [value for _, value in found] == pytest.approx(expected)
    assert [name for name in run.history.health if "out" in name] == []
    assert run.history.health["moved/layers.1"][1:] == [1.0]


def test_a_network_that_learns_converges_and_its_run_is_found_by_its_tags():
    model, optimizer = toy(lr=2e-2)
    x, y = data(99)
    run = train(
        model,
        optimizer,
        epochs=12,
        steps=20,
        baseline=float(y.var()),
        dataset="toy-16",
        params={"width": 8, "lr": 0.02},
    )
    assert run.verdict.label == "converged"
    assert "progress (0: constant prediction, 1: a perfect fit)" in run.verdict.reason
    tags = stored(run).data.tags
    assert {name: tags[name] for name in ("study", "arm", "seed", "arch", "clip_algo", "verdict", "device")} == {
        **{"study": "toy", "arm": "wide", "seed": "3", "arch": "Toy", "clip_algo": "none"},
        **{"verdict": "converged", "device": "cpu"},
    }
    assert tags["dataset_sha256"] == hashlib.sha256(b"toy-16").hexdigest()
    assert tags["stability"] in ("steady", "relapsed")
    assert stored(run).info.status == "FINISHED"
    assert stored(run).info.run_name == "wide-seed3"
    assert stored(run).data.params.items() >= {("width", "8"), ("lr", "0.02"), ("model.arch", "Toy")}
    metrics = stored(run).data.metrics
    assert metrics["best_val_loss"] == pytest.approx(min(run.history.val_loss))
    assert metrics["val/loss_constant"] == pytest.approx(float(y.var()))
    assert {"val/progress", "grad/norm_median", "stability/max_drawdown", "val/plateau_left_epoch"} <= metrics.keys()


def test_nothing_of_ptychography_is_in_a_foreign_run():
    run = train(*toy(), baseline=0.5)
    words = ("object", "stitched", "patch", "twin", "photon", "probe", "floor", "pattern", "supervised", "orientation")
    history, metrics, data_ = artifact(run, "history.json"), artifact(run, "metrics.json"), stored(run).data
    for names in (history, history["health"], metrics, metrics["evidence"], data_.metrics, data_.tags):
        assert [name for name in names if any(word in name for word in words)] == []
    assert not any(word in run.verdict.reason for word in words)


def test_the_stored_history_is_judged_as_the_run_was():
    for baseline in (None, 0.5, 1e-6):
        run = train(*toy(), baseline=baseline)
        assert judge(artifact(run, "history.json")) == run.verdict


def _loop(losses, **settings):
    """A run whose val_loss is given."""
    model, optimizer = toy()
    with monitor.run(model, optimizer, **PLACE | settings) as run:
        for val_loss in losses:
            optimizer.zero_grad()
            run.step(gradients(model))
            run.epoch(val_loss=val_loss)
    return run


@pytest.mark.parametrize("losses", [[1.0, 0.1], [0.1, 1.0], [math.nan], []])
def test_without_a_baseline_the_verdict_is_unknown_and_no_failure(losses):
    run = _loop(losses)
    assert (run.verdict.label, run.verdict.failed) == ("unknown", False)


@pytest.mark.parametrize(
    ("losses", "label"), [([0.9, 0.1], "converged"), ([0.9, 0.8], "stagnated"), ([0.9, 0.1, 0.7], "diverged")]
)
def test_with_a_baseline_the_course_decides(losses, label):
    run = _loop(losses, baseline=1.0)
    assert run.verdict.label == stored(run).data.tags["verdict"] == label


def test_a_network_whose_parameters_do_not_move_is_dead():
    run = train(*toy(lr=0.0), baseline=1.0)
    assert run.verdict.label == "collapsed"
    assert run.verdict.reason.startswith("the network died: no parameter changed in the last epoch")
    assert run.history.parameters_moved == [0.0] * 3


def test_further_metrics_are_logged_under_their_own_names():
    model, optimizer = toy()
    with monitor.run(model, optimizer, **PLACE) as run:
        run.step(gradients(model))
        run.epoch(val_loss=0.5, **{"val/accuracy": torch.tensor(0.25), "h1": 2.0})
    assert points(run, "val/accuracy") == [(0, 0.25)]
    assert points(run, "h1") == [(0, 2.0)]


@pytest.mark.parametrize(
    "name", ["val/loss", "val/loss/x", "lr", "val", "health/x", "weight_grad_norm/a", "a//b", "a?"]
)
def test_a_metric_in_the_way_of_the_monitors_own_or_that_mlflow_refuses_is_refused(name):
    model, optimizer = toy()
    run = monitor.run(model, optimizer, **PLACE)
    with run:
        run.step(gradients(model))
        with pytest.raises(ValueError, match=r"^`metrics` \(=.*\) must [^\n]*$"):
            run.epoch(val_loss=0.5, **{name: 1.0})


# Steps that are not taken.


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_not_finite_is_not_taken_nor_is_any_after_it(what, fused):
    model, optimizer = toy(fused=fused)
    with monitor.run(model, optimizer, **PLACE, baseline=1.0) as run:
        run.step(gradients(model))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        loss = gradients(model)
        if what == "loss":
            loss = loss * math.nan
        else:
            model.layers[1].weight.grad[0, 0] = math.inf
        assert not run.should_stop
        run.step(loss)
        assert run.should_stop
        optimizer.zero_grad()
        run.step(gradients(model))
        run.epoch(val_loss=0.1)
    layer = {"loss": "loss", "gradient": "layers.1 (gradient)"}[what]
    assert run.history.events == {"non_finite": {"step": 1, "layer": layer}}
    assert run.history.steps == 2
    assert run.history.val_loss == []
    assert run.verdict.label == "non_finite"
    assert (
        run.verdict.reason
        == f"the loss or gradient was not finite at step 1, first in `{layer}`; that update was not applied"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_scaler_unscales_before_clipping_and_its_skipped_steps_are_no_steps():
    model, optimizer = toy(kind=torch.optim.SGD, lr=0.1)
    reference, steps = toy(kind=torch.optim.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with monitor.run(model, optimizer, **PLACE, clip=("norm", 0.1)) as run:
        for attempt in range(3):
            optimizer.zero_grad()
            x, y = data()
            loss = (model(x) - y).square().mean()
            scaler.scale(loss).backward()
            if attempt == 1:  # the scale was too large for half precision
                model.out.weight.grad[0, 0] = math.inf
            run.step(loss, scaler=scaler)
            scaler.update()
        run.epoch(val_loss=0.5)
    for _ in range(2):
        steps.zero_grad()
        gradients(reference)
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
        steps.step()
    torch.testing.assert_close(list(model.parameters()), list(reference.parameters()))
    assert run.history.steps == 2
    assert run.history.events == {}


def test_gradients_that_are_still_scaled_are_refused():
    model, optimizer = toy(fused=True)
    scaler = torch.amp.GradScaler("cpu")
    run = monitor.run(model, optimizer, **PLACE)
    loss_function = run.watch_loss(nn.functional.mse_loss)
    x, y = data()
    with run:
        scaler.scale(loss_function(model(x), y)).backward()
        with pytest.raises(ValueError, match=r"^`optimizer` \(=Adam, fused\) must have its gradients unscaled"):
            scaler.step(optimizer)


def test_only_the_steps_of_an_accumulation_count():
    model, optimizer = toy()
    with monitor.run(model, optimizer, **PLACE) as run:
        for step in range(2):
            optimizer.zero_grad()
            total = sum(gradients(model, 4 * step + part).detach() for part in range(4))
            run.step(total / 4)
    assert run.history.steps == 2


# Loops of others.


def test_a_loop_that_steps_the_optimizer_itself_is_recorded_by_the_hook():
    model, optimizer = toy()
    losses = []
    with monitor.run(model, optimizer, **PLACE, clip=("norm", 0.05)) as run:
        loss_function = run.watch_loss(nn.functional.mse_loss)
        for step in range(3):
            optimizer.zero_grad()
            x, y = data(step)
            loss = loss_function(model(x), y)
            with torch.no_grad():
                loss_function(model(x), y + 1)  # of a validation
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert run.history.loss_step == losses
    assert run.history.clipped_fraction == [1.0] * 3
    optimizer.step()  # after the context nobody listens
    assert run.history.steps == 3


def test_a_step_of_which_the_loss_is_not_known_is_refused():
    model, optimizer = toy()
    with monitor.run(model, optimizer, **PLACE) as run:
        run.step(gradients(model))
        with pytest.raises(ValueError, match=r"^`loss` \(=None\) must be known when the optimizer steps: call"):
            optimizer.step()


@pytest.mark.filterwarnings("ignore:LpLoss.__call__")  # of what its own trainer hands to it
def test_the_trainer_of_neuraloperator_is_recorded(tmp_path):
    from neuralop import LpLoss, Trainer
    from neuralop.training import AdamW

    torch.manual_seed(0)
    model = Field()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    fields = [{"x": torch.randn(4, 1, 8, 8), "y": torch.ones(4, 1, 8, 8)} for _ in range(3)]

    class Monitored(Trainer):
        def evaluate_all(self, **arguments):
            found = super().evaluate_all(**arguments)
            run.epoch(val_loss=found["test_mse"], **found)
            return found

    relative, mse = LpLoss(d=2), nn.functional.mse_loss
    trainer = Monitored(model=model, n_epochs=2)
    with monitor.run(model, optimizer, **PLACE, clip=("agc", 0.01), baseline=1.0) as run:
        trainer.train(
            train_loader=Loader(fields),
            test_loaders={"test": Loader(fields)},
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
            training_loss=run.watch_loss(relative),
            eval_losses={"mse": lambda out, y, **_: mse(out, y)},
        )
    assert run.history.steps == 6
    assert len(run.history.val_loss) == 2
    assert all(math.isfinite(value) and value > 0 for value in run.history.loss_step)
    assert points(run, "test_mse") == [(2, run.history.val_loss[0]), (5, run.history.val_loss[1])]


class Field(nn.Module):
    """A field in, a field out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, **_):
        return self.conv(x)


class Loader(list):
    """What the trainer of neuraloperator takes for a loader."""

    @property
    def dataset(self):
        return self
