"""Whole steps from static tensors, as CUDA graphs replay them: the numbers of plain PyTorch, and runs that go on.

Without a GPU, the function that would be captured is called instead; the tests marked `gpu` capture it.
"""

import sys
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from small_runs import KillAfter, fit, new_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fnostab.clipping import Clipper
from fnostab.config import ARCHITECTURES, resolve_config
from fnostab.dataset import load_or_build
from fnostab.training.batches import Batch, EpochOrder, PatchLoader, resident
from fnostab.training.launches import Launch
from fnostab.training.module import PtychoModule
from fnostab.training.replay import GraphedSteps
from fnostab.training.stitching import stitched_amplitude

#: 24 patches, and so six batches an epoch, the last one of four.
TINY = {
    **{
        "preset": "smoke",
        "data.N": 32,
        "data.object_size": 64,
        "data.max_train_patches": 29,
        "data.max_val_patches": 8,
    },
    **{"model.fno_blocks": 2, "model.width": 4, "data.probe_radius_px": 8, "train.batch_size": 5, "train.epochs": 3},
    **{
        "optim.lr": 1e-3,
        "train.overlap_weight": 0.0,
        "optim.schedule": "constant",
        "clip_algo": "norm",
        "clip_val": 0.05,
    },
}
_STEPS = 50
_RULES = {
    **{"norm": ("norm", 0.05), "value": ("value", 1e-4), "none": ("none", 0.0), "agc": ("agc", 0.01)},
    **{"zclip": ("zclip", 0.5), "adagc": ("adagc", 0.9), "skip": ("skip", 1.1)},
}
_OPTIONS = {"zclip": {"warmup": 4}, "adagc": {"warmup": 3, "abs": 0.05}, "skip": {"window": 5, "least": 2}}
_CASES = {
    **{rule: {"clip_algo": algo, "clip_val": value} for rule, (algo, value) in _RULES.items()},
    "cosine": {"optim.schedule": "cosine", "optim.warmup_steps": 10},
    "adamw": {"optim.name": "adamw", "optim.weight_decay": 0.1},
    "poisson": {"train.loss": "poisson"},
    "overlap": {"train.overlap_weight": 0.5},
    "overlap of poisson, its own scale": {
        "train.overlap_weight": 1.0,
        "train.loss": "poisson",
        "train.loss_scale": "batch",
    },
    "probe": {"train.learn_probe": True, "train.probe_lr": 1e-3, "train.overlap_weight": 0.5},
    "groups": {"data.gridsize": 2, "train.batch_size": 8},
}


def tiny_config(**keys):
    algo = keys.get("clip_algo", "norm")
    options = {f"clip.options.{name}": value for name, value in _OPTIONS.get(algo, {}).items()}
    return resolve_config(options | {key.replace("__", "."): value for key, value in keys.items()}, base=TINY)


@pytest.fixture
def several(monkeypatch):
    """Launches of three steps, on CPUs too."""
    monkeypatch.setattr("fnostab.training.replay.STEPS_A_LAUNCH", 3)
    monkeypatch.setattr("fnostab.training.module.replays_on", lambda device: True)


def new_loader(config, device):
    dataset = load_or_build(config.data)
    neighbours = config.train.overlap_weight > 0
    gridsize = config.data.gridsize
    order = EpochOrder(dataset.train, config.train.batch_size, config.seed, neighbours, gridsize=gridsize)
    return PatchLoader(resident(dataset.train, device)._replace(group_size=gridsize**2), order)


def _replayed(config, device):
    """Losses and module after `_STEPS` replayed steps."""
    module, loader = new_module(config).to(device).train(), new_loader(config, device)
    loader.gathers = False
    made = module.configure_optimizers()
    optimizer, schedule = (
        (made["optimizer"], made["lr_scheduler"]["scheduler"]) if isinstance(made, dict) else (made, None)
    )
    steps = GraphedSteps(module, loader, optimizer, schedule, measure_every=[20])
    losses, norms = [], []
    while len(losses) < _STEPS:
        loader.sampler.set_epoch(len(losses) // len(loader))
        for draw in loader:
            losses.append(float(steps.take(draw, len(losses))))
            norms.append(float(module.step.record[1]))
            if schedule:
                schedule.step()
    return losses, norms, module


def _plain(config, device):
    """The same by a loop of PyTorch's own means, in the ordinary batches."""
    module, loader, dataset = (
        new_module(config).to(device).train(),
        new_loader(config, device),
        load_or_build(config.data),
    )
    network, probe = module.generator, module.probe_parameter
    train, optim, clip = config.train, config.optim, config.clip
    groups = [{"params": list(network.parameters()), "lr": optim.lr}]
    if train.learn_probe:
        largest = float(torch.view_as_complex(probe.detach()).abs().max())
        groups.append({"params": [probe], "lr": train.probe_lr * largest, "weight_decay": 0.0})
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    optimizer = kind(groups, weight_decay=optim.weight_decay, betas=tuple(optim.betas), eps=optim.eps, foreach=False)
    clipper = Clipper(clip.algo, clip.val, options=clip.options)
    first_lrs = [group["lr"] for group in optimizer.param_groups]
    total, warmup = module.trainer.estimated_stepping_batches, optim.warmup_steps
    counts_a_pattern = float(dataset.train.counts.mean(dtype=np.float64)) * 32 * 32
    amplitude_a_pattern = float(np.sqrt(dataset.train.counts).mean(dtype=np.float64)) * 32 * 32

    def loss_of(amplitude, batch):
        measured, counts = batch.sqrt_counts, batch.sqrt_counts**2
        if train.loss == "mae":
            mean = measured.sum() / len(measured) if train.loss_scale == "batch" else amplitude_a_pattern
            return (module.scale * amplitude - measured).abs().sum() / len(measured) / mean
        floor = 1e-3 * counts_a_pattern / (32 * 32)
        rate, counts_on = (module.scale * amplitude) ** 2 + floor, counts + floor
        mean = counts.sum() / len(measured) if train.loss_scale == "batch" else counts_a_pattern
        return (rate - counts_on + counts_on * torch.log(counts_on / rate)).sum() / len(measured) / mean

    losses, norms = [], []
    while len(losses) < _STEPS:
        loader.sampler.set_epoch(len(losses) // len(loader))
        for batch in loader:
            step = len(losses)
            for group, lr in zip(optimizer.param_groups, first_lrs, strict=True):
                rise, fall = (step + 1) / (warmup + 1), 0.5 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup)))
                group["lr"] = lr if optim.schedule == "constant" else lr * (rise if step < warmup else fall)
            C = batch.group_size
            inputs = (batch.sqrt_counts * module.input_scale).reshape(-1, C, 32, 32)
            patches = torch.view_as_complex(network(inputs).movedim(3, 1).flatten(0, 1).contiguous())
            beam = torch.view_as_complex(probe)
            loss = 0.0
            if train.overlap_weight < 1:
                alone = torch.fft.fftshift(torch.fft.fft2(beam * patches, norm="ortho"), dim=(-2, -1)).abs()
                loss = (1 - train.overlap_weight) * loss_of(alone, batch)
            if train.overlap_weight > 0:
                together = stitched_amplitude(patches, module.beam, batch.positions_px, batch.extent_px)
                loss = loss + train.overlap_weight * loss_of(together, batch)
            optimizer.zero_grad()
            network.zero_grad()
            loss.backward()
            before = torch.linalg.vector_norm(
                torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None])
            )
            left_out = False
            if clip.algo == "norm":
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip.val)
            elif clip.algo == "value":
                torch.nn.utils.clip_grad_value_(network.parameters(), clip.val)
            elif clip.algo != "none":
                stats = clipper.clip_(network)
                left_out = stats.skip is not None and bool(stats.skip)
            if not left_out:
                optimizer.step()
            losses.append(float(loss.detach()))
            norms.append(float(before))
    return losses, norms, module


def _assert_close(config, device):
    losses, norms, module = _replayed(config, device)
    plain_losses, plain_norms, plain = _plain(config, device)
    # With a learnt probe, rounding grows: plain PyTorch on two threads is 2e-3 away from itself on one.
    rtol = 5e-3 if config.train.learn_probe else 2e-4
    np.testing.assert_allclose(losses, plain_losses, rtol=rtol)
    np.testing.assert_allclose(norms, plain_norms, rtol=100 * rtol)
    assert np.ptp(losses) > 0.05 * losses[0]
    for (name, weight), other in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.dist(weight, other) <= 10 * rtol * other.norm() + 1e-4, name


@pytest.fixture
def full_precision(monkeypatch):
    """No TF32 in convolutions: batches of another size have other kernels, which would then differ by a thousandth."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def without_trainer(monkeypatch):
    monkeypatch.setattr(PtychoModule, "trainer", SimpleNamespace(estimated_stepping_batches=80, world_size=1))


@pytest.mark.parametrize("case", _CASES)
def test_fifty_replayed_steps_are_those_of_plain_pytorch(several, without_trainer, case):
    _assert_close(tiny_config(**_CASES[case]), torch.device("cpu"))


def test_patches_that_need_a_larger_canvas_are_stitched_in_the_ordinary_way(several, without_trainer, monkeypatch):
    monkeypatch.setattr("fnostab.training.launches._CANVAS_MARGIN", 0.6)
    taken = []
    run = Launch.run
    monkeypatch.setattr(Launch, "run", lambda launch: (taken.append(launch.records.shape[1]), run(launch))[1])
    _assert_close(tiny_config(**_CASES["overlap"]), torch.device("cpu"))
    assert 0 < sum(taken) < _STEPS - 5


@pytest.mark.gpu
@pytest.mark.parametrize("case", _CASES)
def test_fifty_captured_steps_are_those_of_plain_pytorch(several, without_trainer, full_precision, case):
    _assert_close(tiny_config(**_CASES[case]), torch.device("cuda"))


def let_meta_devices_train(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # it does not know meta devices
    for name in ("torch.optim.optimizer", "torch.optim.adam", "torch.optim.sgd"):
        if hasattr(sys.modules[name], "_device_dtype_check_for_fused"):
            monkeypatch.setattr(sys.modules[name], "_device_dtype_check_for_fused", lambda *arguments, **named: None)


def on_meta(config):
    """A module, its loader, optimizer and schedule (None if there is none), all tensors on the meta device."""
    module, loader = new_module(config).to("meta").train(), new_loader(config, "cpu")
    loader.gathers = False
    loader.draws = [draw._replace(members=draw.members.to("meta")) for draw in loader]
    loader.patches = loader.patches.each(lambda rows: rows.to("meta"))
    made = module.configure_optimizers()
    scheduled = isinstance(made, dict)
    return module, loader, *((made["optimizer"], made["lr_scheduler"]["scheduler"]) if scheduled else (made, None))


def remembered(module, optimizer):
    """Which tensors hold weights and what optimizer, clipping rule and guard remember."""
    of_optimizer = [value for state in optimizer.state.values() for value in state.values()]
    kept = [*module.step.clipper._state.values(), *of_optimizer, *module.parameters(), module.step._bad]
    return [id(tensor) for tensor in kept]


class OnlyMeta(TorchDispatchMode):
    """Notes what would copy between devices; to read a number of a meta tensor is an error anyway."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # PyTorch has no meta kernel of its fused optimizers.
        result = None if "_fused_" in str(function) else function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type != "meta" for tensor in tensors):
            self.found.append(str(function))
        return result


@pytest.mark.parametrize(
    "keys",
    [
        *({"arch": arch} for arch in ARCHITECTURES),
        *({"clip_algo": algo, "clip_val": value} for algo, value in _RULES.values()),
        {"train.overlap_weight": 0.5, "train.loss_scale": "batch", "optim.schedule": "cosine"},
        {"train.loss": "poisson", "optim.name": "sgd"},
        {"train.mode": "supervised", "optim.name": "stable_adamw"},
        {"data.gridsize": 2, "train.batch_size": 4, "optim.name": "adamw"},
    ],
    ids=str,
)
def test_no_replayed_step_waits_for_the_device_nor_leaves_it_nor_moves_what_it_remembers(
    several, without_trainer, monkeypatch, keys
):
    let_meta_devices_train(monkeypatch)
    config = tiny_config(**keys)
    module, loader, optimizer, schedule = on_meta(config)
    steps = GraphedSteps(module, loader, optimizer, schedule, measure_every=[10**6])

    with OnlyMeta() as watched:
        for number, draw in enumerate(loader.draws[:3], start=1):  # alone; the first one makes all that is remembered
            steps.take(draw, number)
        before = remembered(module, optimizer)
        watched.found.clear()
        steps.take(loader.draws[3], 4)
    assert steps.is_ahead
    assert watched.found == []
    assert remembered(module, optimizer) == before


_RUN = {"train__overlap_weight": 0.5, "optim__schedule": "cosine", "clip_algo": "zclip", "clip_val": 0.5}


def states_equal(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def states_close(first, second, rtol):
    return all(
        torch.dist(a, b) <= rtol * b.norm() + 1e-5
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("killed_at", [7, 8, 9, 14])
def test_a_killed_run_goes_on_bit_for_bit_from_the_end_of_a_launch(several, tmp_path, killed_at):
    config = tiny_config(**_RUN)
    whole, history, _ = fit(config, tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillAfter(killed_at)])
    checkpoint = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] in {6, 9, 12}  # steps 6 to 8, 9 to 11 and 12 to 14 are taken together
    resumed, continued, _ = fit(config, tmp_path / "killed", new_module(tiny_config(**_RUN, seed=7)), resume=True)
    assert continued.to_json() == history.to_json()
    assert states_equal(whole, resumed)


def test_a_checkpoint_of_the_ordinary_way_goes_on_replayed_and_back(several, tmp_path, monkeypatch):
    config, ordinary = tiny_config(**_RUN), tiny_config(**_RUN, train__cuda_graph=False)
    _, history, _ = fit(ordinary, tmp_path / "whole")
    for first, then in ((config, ordinary), (ordinary, config)):
        with pytest.raises(SystemError, match="killed"):
            fit(first, tmp_path, checkpoint_every_s=0.0, extra=[KillAfter(9)])
        _, continued, _ = fit(then, tmp_path, resume=True)
        np.testing.assert_allclose(continued.loss_step, history.loss_step, rtol=1e-4)
        assert continued.lr == history.lr


def test_a_replayed_run_records_what_the_ordinary_one_does(several, tmp_path):
    keys = {**_RUN, "train__layer_norms_every_steps": 7}
    module, history, sink = fit(tiny_config(**keys), tmp_path / "replayed")
    other, expected, other_sink = fit(tiny_config(**keys, train__cuda_graph=False), tmp_path / "ordinary")
    assert [(key, step) for key, _, step, _ in sink.rows] == [(key, step) for key, _, step, _ in other_sink.rows]
    values, others = ([value for _, value, *_ in of.rows] for of in (sink, other_sink))
    np.testing.assert_allclose(values, others, rtol=0.05, atol=1e-4)
    np.testing.assert_allclose(history.loss_step, expected.loss_step, rtol=1e-5)
    assert states_close(module, other, 1e-4)


class BadPattern(lightning.Callback):
    """Spoils the patterns of the batch at one place of an epoch; remembers what the module was after each step."""

    def __init__(self, epoch, place):
        self.epoch, self.place = epoch, place

    def on_train_batch_start(self, trainer, module, draw, place):
        if (trainer.current_epoch, place) == (self.epoch, 0):
            loader = trainer.train_dataloader
            loader.patches.sqrt_counts[loader.draws[self.place].members[0]] = float("nan")


def test_nothing_moves_from_a_step_on_that_is_not_finite_amid_a_launch(several, tmp_path):
    # Epochs of six steps, of which 6, 7 and 8 are taken together.
    keys = {"clip_algo": "zclip", "clip_val": 0.5, "optim__name": "adamw"}
    module, history, _ = fit(tiny_config(**keys), tmp_path / "replayed", extra=[BadPattern(1, 1)])
    other, expected, _ = fit(
        tiny_config(**keys, train__cuda_graph=False), tmp_path / "ordinary", extra=[BadPattern(1, 1)]
    )
    assert history.events == expected.events
    assert history.events["non_finite"]["step"] == 7
    assert history.steps == 8
    assert states_close(module, other, 1e-5)
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_networks_and_rules_of_users_and_runs_that_ask_for_it_are_trained_in_the_ordinary_way(several, tmp_path):
    (tmp_path / "rules.py").write_text(
        "def half(module, value, state):\n    for p in module.parameters(): p.grad *= value\n"
    )

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, place):
            self.gathered = isinstance(batch, Batch)

    for keys, gathered in (
        ({}, False),
        ({"train__cuda_graph": False}, True),
        ({"clip_algo": f"{tmp_path}/rules.py:half"}, True),
    ):
        watch = Watch()
        fit(tiny_config(**keys, epochs=1), tmp_path, extra=[watch])
        assert watch.gathered is gathered


def test_replayed_steps_in_bfloat16_are_those_of_the_ordinary_way(several, tmp_path):
    keys = {"train__precision": "bf16-mixed", "train__overlap_weight": 0.5}
    _, history, _ = fit(tiny_config(**keys), tmp_path / "replayed")
    _, expected, _ = fit(tiny_config(**keys, train__cuda_graph=False), tmp_path / "ordinary")
    np.testing.assert_allclose(history.loss_step, expected.loss_step, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_captured_steps_of_every_network_are_those_of_the_ordinary_way(tmp_path, full_precision, arch, precision):
    keys = {"arch": arch, "accelerator": "gpu", "train__overlap_weight": 0.5, "train__batch_size": 2}
    keys["train__precision"] = precision
    module, history, _ = fit(tiny_config(**keys), tmp_path / "captured")
    other, expected, _ = fit(tiny_config(**keys, train__cuda_graph=False), tmp_path / "ordinary")
    rtol = 1e-3 if precision == "32-true" else 3e-2
    np.testing.assert_allclose(history.loss_step, expected.loss_step, rtol=rtol)
    assert states_close(module, other, 10 * rtol)


@pytest.mark.gpu
def test_a_killed_captured_run_goes_on_to_nearly_the_same_numbers(tmp_path, full_precision):
    config = tiny_config(**_RUN, accelerator="gpu", train__batch_size=2)
    _, history, _ = fit(config, tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillAfter(21)])
    _, continued, _ = fit(config, tmp_path / "killed", resume=True)
    np.testing.assert_allclose(continued.loss_step, history.loss_step, rtol=1e-3)
