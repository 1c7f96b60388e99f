"""The monitor of a Lightning trainer: any module, any way to optimise, resumed, interrupted, refused."""

import math
import os
import signal
import subprocess
import sys

import lightning
import pytest
import torch
from monitored import PLACE, Toy, data, points, stored
from torch.utils.data import DataLoader, TensorDataset

from fnostab.gradients import total_norm
from fnostab.monitor import StabilityMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*does not have any functionality in it"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


class Module(lightning.LightningModule):
    """A module of somebody else's: it knows nothing of the monitor."""

    def __init__(self, kind=torch.optim.SGD, manual=False, log="val_loss", **options):
        super().__init__()
        torch.manual_seed(0)
        self.net = Toy()
        self.kind, self.log_as = kind, log
        self.options = {"lr": 0.1} | options
        self.automatic_optimization = not manual
        self.norms = []

    def configure_optimizers(self):
        return self.kind(self.parameters(), **self.options)

    def training_step(self, batch, index):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log(self.log_as, (self.net(x) - y).square().mean())


def loader(seed=0, n=16, batch=4):
    return DataLoader(TensorDataset(*data(seed, n)), batch)


def trainer(folder, callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False} | quiet | options
    return lightning.Trainer(callbacks=callbacks, default_root_dir=folder, **options)


def fit(folder, module=None, *, callbacks=(), ckpt_path=None, validate=True, settings=None, **options):
    watch = StabilityMonitor(**PLACE | (settings or {}))
    module = module or Module()
    trainer(folder, [watch, *callbacks], **options).fit(
        module, loader(), loader(99) if validate else None, ckpt_path=ckpt_path
    )
    return watch, module


def plain(steps=8, micro=1, clip=None, lr=0.1):
    """What a loop by hand gives for the same batches: network, losses, norms."""
    torch.manual_seed(0)
    net = Toy()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    x, y = data()
    losses, norms = [], []
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)] * 10
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for xs, ys in batches[step * micro : (step + 1) * micro]:
            loss = (net(xs) - ys).square().mean() / micro
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        norms.append(float(total_norm(net)))
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return net, losses, norms


def same(module, net):
    torch.testing.assert_close(list(module.net.parameters()), list(net.parameters()))


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_each_optimizer_step_is_recorded_and_clipped(tmp_path, manual):
    watch, module = fit(tmp_path, Module(manual=manual), settings={"clip": ("norm", 0.2), "baseline": 2.0})
    net, losses, norms = plain(clip=0.2)
    same(module, net)
    assert watch.history.loss_step == pytest.approx(losses)
    assert watch.history.grad_norm_preclip == pytest.approx(norms)
    assert watch.history.grad_norm_postclip == pytest.approx([min(0.2, norm) for norm in norms], rel=1e-4)
    assert len(watch.history.val_loss) == 2
    tags = stored(watch).data.tags
    assert (tags["study"], tags["arm"], tags["seed"], tags["arch"]) == ("toy", "wide", "3", "Module")
    assert tags["verdict"] == watch.verdict.label != "unknown"
    assert len(points(watch, "train/loss")) == 8


def test_an_accumulation_is_one_step_with_the_mean_of_its_losses(tmp_path):
    watch, module = fit(tmp_path, accumulate_grad_batches=2)
    net, losses, norms = plain(steps=4, micro=2)
    same(module, net)
    assert watch.history.loss_step == pytest.approx(losses)
    assert watch.history.grad_norm_preclip == pytest.approx(norms)


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_in_half_precision_gradients_are_unscaled_before_they_are_clipped(tmp_path, manual):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plugin = lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    watch, module = fit(tmp_path, Module(manual=manual), settings={"clip": ("norm", 0.2)}, plugins=[plugin])
    net, losses, norms = plain(clip=0.2)
    torch.testing.assert_close(list(module.net.parameters()), list(net.parameters()), rtol=0.02, atol=2e-3)
    assert watch.history.loss_step == pytest.approx(losses, rel=0.01)
    assert watch.history.grad_norm_preclip == pytest.approx(norms, rel=0.01)


def test_steps_that_the_scaler_leaves_out_are_no_steps_and_no_failure(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # far too large for half precision
    plugin = lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    watch, _ = fit(tmp_path, plugins=[plugin], max_epochs=12)
    left_out = watch.history.monitor["left_out_by_scaler"]
    assert 10 < left_out < 48
    assert watch.history.steps == 48 - left_out
    assert watch.history.events == {}
    assert all(map(math.isfinite, watch.history.grad_norm_preclip))
    assert [step for step, _ in points(watch, "grad/norm_preclip")] == list(range(watch.history.steps))


def test_bf16_is_recorded(tmp_path):
    watch, _ = fit(tmp_path, precision="bf16-mixed")
    assert watch.history.grad_norm_preclip == pytest.approx(plain()[2], rel=0.05)


def test_without_validation_an_epoch_of_training_is_one(tmp_path):
    watch, _ = fit(tmp_path, validate=False, settings={"val": "train_loss"})
    assert watch.history.val_loss == pytest.approx(watch.history.train_loss)
    assert len(watch.history.val_loss) == 2


def test_an_epoch_is_what_lies_between_two_validations(tmp_path):
    watch, _ = fit(tmp_path, val_check_interval=0.5)
    assert [step for step, _ in points(watch, "val/loss")] == [1, 3, 5, 7]
    watch, _ = fit(tmp_path, check_val_every_n_epoch=2, max_epochs=4)
    assert [step for step, _ in points(watch, "val/loss")] == [7, 15]


class Bad(Module):
    """A loss that is not finite from the third batch on."""

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return loss * math.nan if index >= 2 else loss


def test_a_step_that_is_not_finite_is_not_taken_and_ends_the_training(tmp_path):
    watch, module = fit(tmp_path, Bad(), settings={"baseline": 1.0})
    net, *_ = plain(steps=2)
    same(module, net)
    assert watch.history.events == {"non_finite": {"step": 2, "layer": "loss"}}
    assert watch.verdict.label == stored(watch).data.tags["verdict"] == "non_finite"
    assert module.trainer.global_step == 3


class StopAt(lightning.Callback):
    """Raises after so many steps."""

    def __init__(self, steps, error):
        self.steps, self.error = steps, error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            raise self.error


def test_a_resumed_training_goes_on_in_the_same_run_with_the_same_series(tmp_path):
    whole, _ = fit(tmp_path, max_epochs=4, settings={"baseline": 2.0})
    save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    first = StabilityMonitor(**PLACE, baseline=2.0)
    stopper = StopAt(10, RuntimeError("the machine went away"))
    with pytest.raises(RuntimeError, match="the machine went away"):
        trainer(tmp_path, [first, save, stopper], max_epochs=4, enable_checkpointing=True).fit(
            Module(), loader(), loader(99)
        )
    assert stored(first).info.status == "FAILED"
    assert stored(first).data.tags["verdict_reason"] == "RuntimeError: the machine went away"
    second, _ = fit(tmp_path, max_epochs=4, settings={"baseline": 2.0}, ckpt_path=tmp_path / "ckpt" / "last.ckpt")
    assert second.run_id == first.run_id
    assert second.history.to_mapping() == whole.history.to_mapping()
    assert points(second, "train/loss") == points(whole, "train/loss")
    assert points(second, "val/loss") == points(whole, "val/loss")
    assert stored(second).info.status == "FINISHED"
    assert stored(second).data.tags["verdict"] == whole.verdict.label


def test_a_checkpoint_of_another_arm_is_refused(tmp_path):
    save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    fit(tmp_path, callbacks=[save], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"^`state` \(=toy, wide, seed 3\) must be of the run that goes on, toy, deep"):
        fit(tmp_path, settings={"arm": "deep"}, ckpt_path=tmp_path / "ckpt" / "last.ckpt", max_epochs=4)


class TrialPruned(Exception):
    """Named as Optuna's."""


def test_a_pruned_trial_is_no_failure(tmp_path):
    watch = StabilityMonitor(**PLACE, baseline=2.0)
    with pytest.raises(TrialPruned):
        trainer(tmp_path, [watch, StopAt(6, TrialPruned())]).fit(Module(), loader(), loader(99))
    assert watch.verdict.label == stored(watch).data.tags["verdict"] == "pruned"
    assert stored(watch).info.status == "FINISHED"
    assert watch.history.steps == 6


def test_ctrl_c_interrupts_the_run(tmp_path):
    watch = StabilityMonitor(**PLACE)
    with pytest.raises(SystemExit):
        trainer(tmp_path, [watch, StopAt(6, KeyboardInterrupt())]).fit(Module(), loader(), loader(99))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning turns it off
    assert stored(watch).data.tags["verdict"] == "interrupted"
    assert stored(watch).info.status == "KILLED"


# Refusals.


def test_a_metric_that_is_not_logged_is_refused_at_the_first_validation(tmp_path):
    with pytest.raises(
        ValueError, match=r"^`val` \(=val_loss\) must be a metric that self.log logs; logged is val_mse"
    ):
        fit(tmp_path, Module(log="val_mse"))


def test_clipping_by_the_trainer_is_refused_before_a_run_is_made(tmp_path, fresh_store):
    rule = r'^`gradient_clip_val` \(=0.5\) must be left to the monitor.*: StabilityMonitor\(clip=\("norm", 0.5\)\)$'
    with pytest.raises(ValueError, match=rule):
        fit(tmp_path, gradient_clip_val=0.5)
    assert not (fresh_store / "mlflow.db").exists()


class Two(Module):
    """A module of two optimizers."""

    def __init__(self):
        super().__init__(manual=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.layers.parameters()), torch.optim.SGD(self.net.out.parameters(), lr=0.1)


def test_several_optimizers_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"^`optimizers` \(=Adam, SGD\) must be one: the monitor records the steps"):
        fit(tmp_path, Two())


def test_a_fused_optimizer_with_a_gradient_scaler_is_refused(tmp_path):
    plugin = lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"^`optimizer` \(=SGD, fused\) must not be fused with a gradient scaler"):
        fit(tmp_path, Module(fused=True), plugins=[plugin])


def test_a_plain_loop_does_not_import_lightning():
    code = "import sys, fnostab.monitor as m; assert m.run; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        __import__("fnostab.monitor").monitor.Nothing  # noqa: B018
