"""Runs that are trained together: the numbers of each are its own, whatever the others do."""

import signal
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fnostab.clipping import clip_gradients_
from fnostab.config import ARCHITECTURES, resolve_config
from fnostab.dataset import load_or_build
from fnostab.io.endings import Interrupted
from fnostab.models import build_generator
from fnostab.models.fused import fused_forward
from fnostab.training.batches import EpochOrder, PatchLoader, resident
from fnostab.training.joint import Step, losses_with_gradients
from fnostab.training.module import PtychoModule
from fnostab.training.together import Member, Together
from fnostab.training.turns import Turns

_SEEDS = (1, 2, 3)


def _networks(arch, count=3):
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = build_generator(resolve_config({"preset": "smoke", "arch": arch}).model, 32)
        for name, parameter in network.named_parameters():
            if "norm" in name:  # some start at 0, and would hide the block
                torch.nn.init.normal_(parameter)
        networks.append(network)
    return networks


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_networks_computed_as_one_give_the_outputs_and_gradients_of_each_alone(arch):
    networks = _networks(arch)
    inputs = [torch.rand(size, 1, 32, 32) for size in (4, 4, 3)]
    outputs = fused_forward(networks, inputs)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    gradients = [{name: p.grad for name, p in network.named_parameters()} for network in networks]
    for network, x, output, found in zip(networks, inputs, outputs, gradients, strict=True):
        network.zero_grad()
        alone = network(x)
        alone.square().mean().backward()
        # A norm that divides by a small deviation magnifies rounding.
        torch.testing.assert_close(output, alone, rtol=1e-4, atol=1e-4 * float(alone.detach().abs().max()))
        for name, parameter in network.named_parameters():
            if parameter.grad is None:
                assert found[name] is None
                continue
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-3 * scale + 1e-7, msg=name)
            assert found[name].stride() == parameter.stride()  # as fused optimizers take for granted


@pytest.mark.parametrize("arch", ["hybrid", "stable_hybrid", "prenorm_hybrid", "cnn"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_in_one_network_leaves_the_bits_of_the_others(arch, bad):
    def gradients(networks):
        for network in networks:
            network.zero_grad()
        outputs = fused_forward(networks, inputs)
        torch.autograd.backward([output.square().mean() for output in outputs])
        return outputs, [[p.grad for p in network.parameters()] for network in networks]

    networks = _networks(arch)
    inputs = [torch.rand(4, 1, 32, 32) for _ in networks]
    before = gradients(networks)
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter.fill_(bad)
    after = gradients(networks)
    assert not after[0][1].isfinite().any()
    for place in (0, 2):
        assert torch.equal(before[0][place], after[0][place])
        for one, other in zip(before[1][place], after[1][place], strict=True):
            assert torch.equal(one, other)


def test_threads_take_turns_in_order_and_share_the_answers():
    said = []

    def answer(questions):
        said.append(dict(questions))
        return {place: 10 * question for place, question in questions.items()}

    def work(place, count):
        for number in range(count):
            said.append((place, number))
            assert turns.ask(place, number) == 10 * number

    turns = Turns(answer)
    assert turns.run([partial(work, 0, 2), partial(work, 1, 1), partial(work, 2, 3)]) == [None] * 3
    first, second = [(0, 0), (1, 0), (2, 0), {0: 0, 1: 0, 2: 0}], [(0, 1), (2, 1), {0: 1, 2: 1}]
    assert said == [*first, *second, (2, 2), {2: 2}]


def test_what_goes_wrong_in_one_thread_is_its_own_and_what_goes_wrong_in_common_is_everybodys():
    def answer(questions):
        if len(questions) < 3:
            raise ValueError("in common")
        return questions

    def work(place):
        turns.ask(place, 0)
        if place == 1:
            raise KeyError("mine")
        turns.ask(place, 1)

    turns = Turns(answer)
    ends = turns.run([partial(work, place) for place in range(3)])
    assert [type(end) for end in ends] == [ValueError, KeyError, ValueError]


def test_only_one_thread_is_awake_at_a_time():
    def work(place):
        for _ in range(20):
            assert not inside
            inside.append(place)
            time.sleep(0.0005)
            inside.pop()
            turns.ask(place, None)

    inside = []
    turns = Turns(lambda questions: questions)
    assert turns.run([partial(work, place) for place in range(4)]) == [None] * 4


def test_a_signal_handler_that_raises_reaches_the_threads():
    def work(place):
        if place == 0:
            signal.raise_signal(signal.SIGUSR1)
        while True:
            turns.ask(place, None)
            time.sleep(0.01)

    def handler(signum, frame):
        raise Interrupted(signum)

    turns = Turns(lambda questions: questions)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Interrupted):
            turns.run([partial(work, place) for place in range(2)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and "work" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


def test_runs_that_do_not_fit_into_the_memory_at_once_go_in_smaller_groups(monkeypatch):
    def fused(steps):
        sizes.append(len(steps))
        if len(steps) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return [torch.tensor(float(step.batch)) for step in steps]

    def work(place):
        for number in range(2):
            module = SimpleNamespace(trainer=SimpleNamespace(optimizers=[None]))
            found[place].append(float(Member(together, place).loss(module, 10 * place + number)))

    sizes, lines, found = [], [], [[] for _ in range(5)]
    monkeypatch.setattr("fnostab.training.together.losses_with_gradients", fused)
    together = Together(lines.append)
    assert together.run([partial(work, place) for place in range(5)]) == [None] * 5
    assert sizes == [5, 2, 2, 1, 2, 2, 1]
    assert found == [[10 * place, 10 * place + 1] for place in range(5)]
    assert lines == ["out of memory with 5 runs at once: 2 at once from here"]


def _config(seed=1, **keys):
    # A high learning rate magnifies rounding from step to step.
    common = {"preset": "smoke", "data.max_train_patches": 96, "optim.schedule": "constant", "optim.lr": 3e-4}
    return resolve_config({**common, "seed": seed, **keys})


def _batches(config, dataset, count):
    """The first batches of a run, one epoch after the other."""
    order = EpochOrder(dataset.train, config.train.batch_size, config.seed, config.train.overlap_weight > 0)
    loader = PatchLoader(resident(dataset.train), order)
    found = []
    while len(found) < count:
        found += list(loader)
        order.set_epoch(order.epoch + 1)
    return found[:count]


def _module(config, dataset):
    torch.manual_seed(config.seed)
    return PtychoModule(config, dataset)


def _trained_together(configs, steps, at_step=None):
    """The modules after `steps` steps, and the records of each; `at_step(number, modules)` comes before each."""
    datasets = [load_or_build(config.dataset) for config in configs]
    modules = [_module(config, dataset) for config, dataset in zip(configs, datasets, strict=True)]
    optimizers = [module.configure_optimizers() for module in modules]
    batches = zip(*(_batches(*one, steps) for one in zip(configs, datasets, strict=True)), strict=True)
    records = [[] for _ in modules]
    for number, of_step in enumerate(batches):
        if at_step:
            at_step(number, modules)
        losses_with_gradients([Step(*each) for each in zip(modules, optimizers, of_step, strict=True)])
        for module, optimizer, record in zip(modules, optimizers, records, strict=True):
            module.step.update(optimizer)
            record.append(module.step.record)
    return modules, [torch.stack(record) for record in records]


def _trained_plainly(config, steps):
    """The same run by torch alone: no fused kernels, nothing shared."""
    dataset = load_or_build(config.dataset)
    module = _module(config, dataset)
    optimizer = torch.optim.Adam(module.generator.parameters(), lr=config.optim.lr, foreach=False)
    losses = []
    for batch in _batches(config, dataset, steps):
        optimizer.zero_grad()
        loss = module.loss(module(batch.sqrt_counts), batch, module.beam)
        loss.backward()
        if config.clip.algo == "norm":
            torch.nn.utils.clip_grad_norm_(module.generator.parameters(), config.clip.val, foreach=False)
        elif config.clip.algo == "agc":
            clip_gradients_(module.generator, "agc", config.clip.val)
        elif config.clip.algo == "value":
            torch.nn.utils.clip_grad_value_(module.generator.parameters(), config.clip.val, foreach=False)
        optimizer.step()
        losses.append(float(loss.detach()))
    return module, losses


@pytest.mark.parametrize(
    ("arch", "rule", "value"),
    [("hybrid", "norm", 0.5), ("hybrid", "agc", 0.01), ("stable_hybrid", "none", 0.0), ("cnn", "value", 0.01)],
)
def test_fifty_steps_together_are_those_of_each_run_alone(arch, rule, value):
    configs = [_config(seed, arch=arch, clip_algo=rule, clip_val=value) for seed in _SEEDS]
    modules, records = _trained_together(configs, 50)
    for config, module, record in zip(configs, modules, records, strict=True):
        plain, losses = _trained_plainly(config, 50)
        torch.testing.assert_close(record[:, 0], torch.tensor(losses), rtol=1e-3, atol=0)
        for one, other in zip(module.generator.parameters(), plain.generator.parameters(), strict=True):
            # Adam's steps are as long as the learning rate even where gradients are rounding alone.
            torch.testing.assert_close(one, other, rtol=0, atol=50 * config.optim.lr / 20)


def test_a_run_whose_loss_is_no_number_leaves_the_bits_of_the_others():
    def spoil(number, modules):
        if number == 3:
            with torch.no_grad():
                next(modules[1].generator.parameters()).fill_(float("nan"))

    configs = [_config(seed, clip_algo="agc") for seed in _SEEDS]
    sound, before = _trained_together(configs, 8)
    spoilt, after = _trained_together(configs, 8, spoil)
    assert after[1][:3].isfinite().all()
    assert not after[1][3:, 0].isfinite().any()
    for place in (0, 2):
        assert torch.equal(before[place], after[place])
        for one, other in zip(sound[place].parameters(), spoilt[place].parameters(), strict=True):
            assert torch.equal(one, other)
