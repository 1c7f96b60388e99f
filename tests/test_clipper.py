"""Rules with a history: their papers' formulas written out, what may enter the history, and their state."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_clipping import LAYERS, ComplexWeight, NoWaiting
from torch import Tensor, nn

from fnostab.clipping import ZCLIP_EPS, Clipper, ClipStats, clip_gradients_
from fnostab.gradients import total_norm

HISTORIES = ["zclip", "adagc", "skip"]
LIMITS = {"none": 0.0, "norm": 1.0, "value": 0.1, "agc": 0.01, "zclip": 2.5, "adagc": 1.05, "skip": 3.0}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(5, 3), ComplexWeight())


def norms_of(n: int, seed: int = 0) -> list[float]:
    """Norms that wander, with a spike here and there."""
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(n, generator=generator) + 0.5
    norms[torch.rand(n, generator=generator) > 0.85] *= 30
    return [float(norm) for norm in norms]


def give(module: nn.Module, norm: float, seed: int = 1) -> None:
    """Gradients of that norm together, in parts that change with the seed."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
    scale = norm / total_norm(module)
    for p in module.parameters():
        p.grad *= scale


def parts(module: nn.Module) -> list[float]:
    return [float(torch.linalg.vector_norm(p.grad)) for p in module.parameters()]


def run(clipper: Clipper, norms: list[float]) -> list[tuple[float, float, float]]:
    """What the clipper reports of gradients of these norms, a step after the other."""
    module, found = network(), []
    for step, norm in enumerate(norms):
        give(module, norm, step)
        stats = clipper.clip_(module)
        found.append((float(stats.norm_preclip), float(stats.norm_postclip), float(stats.clipped_fraction)))
    return found


def test_zclip_is_the_papers_algorithm_1() -> None:
    alpha, z_thres, warmup = 0.9, 2.0, 10
    norms, known, expected = norms_of(60), [], []
    mean = var = math.nan
    for g in norms:
        if len(known) < warmup:
            known.append(g)
            mean, var = statistics.fmean(known), statistics.pvariance(known)
            expected.append((g, g, 0.0))
            continue
        std = math.sqrt(var)
        z = (g - mean) / (std + ZCLIP_EPS)
        clipped = mean + z_thres**2 / z * std if z > z_thres else g
        mean = alpha * mean + (1 - alpha) * clipped
        var = alpha * var + (1 - alpha) * (clipped - mean) ** 2
        expected.append((g, clipped, float(z > z_thres)))
    clipper = Clipper("zclip", z_thres, options={"alpha": alpha, "warmup": warmup})
    for ours, theirs in zip(run(clipper, norms), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert 0 < sum(fraction for *_, fraction in expected) < 30
    state = clipper.state_dict()
    assert float(state["mean"]) == pytest.approx(mean, rel=1e-4)
    assert float(state["var"]) == pytest.approx(var, rel=1e-3)


def test_adagc_is_the_papers_algorithm_1() -> None:
    beta, relative, absolute, warmup = 0.9, 1.1, 0.8, 5
    module, gamma = network(), [math.inf] * 5
    clipper = Clipper("adagc", relative, options={"beta": beta, "warmup": warmup, "abs": absolute})
    n_clipped = 0
    for step, norm in enumerate(norms_of(40)):
        give(module, norm, step)
        before = parts(module)
        if step < warmup:
            scales = [min(1.0, absolute / norm)] * 5
        else:
            scales = [min(1.0, relative * limit / g) for limit, g in zip(gamma, before, strict=True)]
        clipped = [scale * g for scale, g in zip(scales, before, strict=True)]
        if step < warmup:
            gamma = [min(old, new) for old, new in zip(gamma, clipped, strict=True)]
        else:
            gamma = [beta * old + (1 - beta) * new for old, new in zip(gamma, clipped, strict=True)]
        stats = clipper.clip_(module)
        assert parts(module) == pytest.approx(clipped, rel=1e-4)
        assert float(stats.norm_preclip) == pytest.approx(norm, rel=1e-5)
        assert float(stats.norm_postclip) == pytest.approx(math.hypot(*clipped), rel=1e-4)
        assert float(stats.clipped_fraction) == pytest.approx(sum(scale < 1 for scale in scales) / 5)
        n_clipped += step >= warmup and any(scale < 1 for scale in scales) and any(scale == 1 for scale in scales)
    assert n_clipped > 5
    assert clipper.state_dict()["gamma"].tolist() == pytest.approx(gamma, rel=1e-4)


@pytest.mark.parametrize("window", [1, 2, 7, 12])
def test_a_step_far_over_the_median_of_the_last_norms_is_left_out(window: int) -> None:
    factor, least = 3.0, 4
    norms, expected = norms_of(60), []
    for step, norm in enumerate(norms):
        known = norms[:step][-window:]
        skip = step >= min(least, window) and norm > factor * statistics.median(known)
        expected.append((norm, 0.0 if skip else norm, float(skip)))
    clipper = Clipper("skip", factor, options={"window": window, "least": least})
    for ours, theirs in zip(run(clipper, norms), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert 0 < sum(fraction for *_, fraction in expected) < 30


def test_skipping_ends_once_gradients_have_become_larger_for_good() -> None:
    found = run(Clipper("skip", 10.0, options={"window": 20, "least": 5}), [1.0] * 30 + [1000.0] * 30)
    assert [fraction for *_, fraction in found] == [0.0] * 30 + [1.0] * 10 + [0.0] * 20


def test_a_step_that_is_left_out_keeps_its_gradients() -> None:
    module, clipper = network(), Clipper("skip", 2.0, options={"least": 1})
    give(module, 1.0)
    assert not clipper.clip_(module).skip
    give(module, 5.0)
    before = parts(module)
    assert clipper.clip_(module).skip
    assert parts(module) == before


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("at", [0, 3, 30])
@pytest.mark.parametrize("rule", HISTORIES)
def test_a_norm_that_is_not_finite_is_not_clipped_and_enters_no_history(rule: str, at: int, bad: float) -> None:
    module, clipper = network(), Clipper(rule, LIMITS[rule])
    for step, norm in enumerate(norms_of(at)):
        give(module, norm, step)
        clipper.clip_(module)
    before = clipper.state_dict()
    give(module, 1.0)
    module[1].weight.grad[0, 0] = bad
    gradients = [p.grad.clone() for p in module.parameters()]
    stats = clipper.clip_(module)
    assert not stats.norm_preclip.isfinite()
    assert not stats.norm_postclip.isfinite()
    assert float(stats.clipped_fraction) == 0
    for p, gradient in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0, equal_nan=True)
    after = clipper.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name])
    assert all(value.isfinite().all() or name in ("gamma", "norms") for name, value in after.items())


def test_adagc_lets_a_tensor_go_on_whose_gradient_was_exactly_zero_at_first() -> None:
    module, clipper = network(), Clipper("adagc", 1.05, options={"warmup": 3})
    for step in range(6):
        give(module, 0.5, step)
        if step == 0:
            module[1].weight.grad.zero_()
        clipper.clip_(module)
    assert float(module[1].weight.grad.norm()) > 0.01


def test_adagc_starts_a_tensor_that_comes_later_with_its_first_norm() -> None:
    module, clipper = network(), Clipper("adagc", 1.05, options={"warmup": 2})
    for step in range(4):
        give(module, 1.0, step)
        module[1].bias.grad = None
        clipper.clip_(module)
    give(module, 1.0, 9)
    first = float(module[1].bias.grad.norm())
    clipper.clip_(module)
    assert float(module[1].bias.grad.norm()) == first
    assert float(clipper.state_dict()["gamma"][3]) == pytest.approx(first)
    module[1].bias.grad *= 100
    clipper.clip_(module)
    assert float(module[1].bias.grad.norm()) == pytest.approx(1.05 * first, rel=1e-5)


@pytest.mark.parametrize("rule", HISTORIES)
def test_a_rule_goes_on_from_its_state_bit_for_bit(rule: str) -> None:
    norms = norms_of(200)
    whole = Clipper(rule, LIMITS[rule])
    begun, resumed = Clipper(rule, LIMITS[rule]), Clipper(rule, LIMITS[rule])
    expected = run(whole, norms)
    module = network()
    for step, norm in enumerate(norms):
        if step == 117:
            resumed.load_state_dict(begun.state_dict())
            begun = resumed
        give(module, norm, step)
        assert tuple(map(float, begun.clip_(module)[:3])) == expected[step]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_a_state_dict_is_a_copy() -> None:
    module, clipper = network(), Clipper("skip", 3.0)
    give(module, 1.0)
    clipper.clip_(module)
    state = clipper.state_dict()
    give(module, 2.0)
    clipper.clip_(module)
    assert int(state["count"]) == 1
    assert int(clipper.state_dict()["count"]) == 2


@pytest.mark.parametrize("granularity", ["unit", "tensor"])
@pytest.mark.parametrize("rule", ["none", "norm", "value", "agc"])
def test_rules_without_a_history_are_clip_gradients_bit_for_bit(rule: str, granularity: str) -> None:
    ours, theirs = network(), network()
    give(ours, 10.0)
    give(theirs, 10.0)
    found = Clipper(rule, LIMITS[rule], granularity=granularity).clip_(ours)
    expected = clip_gradients_(theirs, rule, LIMITS[rule], granularity)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("rule", HISTORIES)
def test_a_value_of_zero_means_none(rule: str) -> None:
    assert all(before == after and not clipped for before, after, clipped in run(Clipper(rule, 0.0), norms_of(50)))


@pytest.mark.parametrize("rule", list(LIMITS))
def test_excluded_parameters_are_not_clipped_and_count_in_the_norms_alone(rule: str) -> None:
    options = {"warmup": 1} if rule in ("zclip", "adagc") else {"least": 1} if rule == "skip" else {}
    all_of_it, part = network(), network()
    clipper = Clipper(rule, LIMITS[rule], exclude=["1.*", "2.weight"], options=options)
    alone = Clipper(rule, LIMITS[rule], options=options)
    for norm in (1.0, 2.0, 50.0):
        give(all_of_it, norm)
        give(part, norm)
        for p in (*part[1].parameters(), *part[2].parameters()):
            p.grad = None
        others = [p.grad.clone() for p in all_of_it[1:].parameters()]
        found, expected = clipper.clip_(all_of_it), alone.clip_(part)
    for p, q in zip(all_of_it[0].parameters(), part[0].parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for p, q in zip(all_of_it[1:].parameters(), others, strict=True):
        assert torch.equal(p.grad, q)
    assert float(found.norm_preclip) == pytest.approx(50.0, rel=1e-5)
    after = 0.0 if found.skip else float(total_norm(all_of_it))
    assert float(found.norm_postclip) == pytest.approx(after, rel=1e-5)
    assert torch.equal(found.clipped_fraction, expected.clipped_fraction)


@pytest.mark.parametrize("rule", HISTORIES)
def test_nothing_waits_for_the_device(rule: str) -> None:
    module = nn.Sequential(*(make() for make, _ in LAYERS.values()))
    give(module, 1.0)
    clipper = Clipper(rule, LIMITS[rule])
    with NoWaiting():
        for _ in range(3):
            clipper.clip_(module)


@pytest.mark.parametrize("rule", HISTORIES)
def test_gradients_in_bfloat16_are_held_to_norms_in_single_precision(rule: str) -> None:
    module = nn.Linear(64, 64, dtype=torch.bfloat16)
    options = {"warmup": 1} if rule != "skip" else {"least": 1}
    clipper = Clipper(rule, LIMITS[rule], options=options)
    for norm in (1.0, 1.0, 64.0):
        for p in module.parameters():
            p.grad = torch.full_like(p, norm / 64)
        stats = clipper.clip_(module)
    assert stats.norm_preclip.dtype == torch.float32
    assert float(stats.norm_preclip) == pytest.approx(64 * math.sqrt(1 + 1 / 64), rel=1e-2)
    assert float(stats.norm_postclip) < 2
    assert module.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("source", [nn.GELU(), nn.Linear(2, 2)], ids=["no parameters", "no gradients"])
@pytest.mark.parametrize("rule", HISTORIES)
def test_nothing_to_clip_gives_zeros_and_enters_no_history(rule: str, source: nn.Module) -> None:
    clipper = Clipper(rule, LIMITS[rule])
    assert [float(stat) for stat in clipper.clip_(source)[:3]] == [0.0, 0.0, 0.0]
    assert clipper.state_dict() == {}


@pytest.mark.parametrize("rule", list(LIMITS))
def test_a_sparse_gradient_is_refused_by_its_parameters_name(rule: str) -> None:
    module = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True)})
    module["table"](torch.tensor([1])).sum().backward()
    message = r"^`table.weight` \(=torch.sparse_coo\) must have a dense gradient, of which norms are taken$"
    with pytest.raises(ValueError, match=message):
        Clipper(rule, LIMITS[rule]).clip_(module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "zlip"}, r"`algorithm` \(=zlip\) must be one of none, norm, value, agc, zclip, adagc, skip"),
        ({"value": math.nan}, r"`value` \(=nan\) must be a number"),
        ({"granularity": "row"}, r"`granularity` \(=row\) must be one of unit, tensor"),
        ({"options": {"alpha": 1.0}}, r"`options.alpha` \(=1.0\) must be < 1"),
        ({"options": {"alpha": "much"}}, r"`options.alpha` \(=much\) must be a valid number, .*"),
        ({"options": {"warmup": 0}}, r"`options.warmup` \(=0\) must be >= 1"),
        ({"options": {"warmup": True}}, r"`options.warmup` \(=True\) must not be true or false"),
        ({"options": {"beta": 1}}, r"`options.beta` \(=1\) must be an option of zclip, which takes alpha, warmup"),
        (
            {"algorithm": "norm", "options": {"beta": 1}},
            r"`options.beta` \(=1\) must be an option of norm, which takes none",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Clipper(**{"algorithm": "zclip", "value": 2.5} | arguments)


@pytest.mark.parametrize("call", [Clipper.check, Clipper.clip_])
def test_a_pattern_that_matches_no_parameter_is_refused(call: Callable[[Clipper, nn.Module], Any]) -> None:
    clipper = Clipper("norm", 1.0, exclude=["0.*", "out.*"])
    with pytest.raises(ValueError, match=r"^`exclude` \(=out.\*\) must match a parameter's name, as 0.weight$"):
        call(clipper, network())


RULES = """
import torch
from fnostab.clipping import ClipStats

def half(module, value, state, *, least: float = 0.0, word="x"):
    state["steps"] = state.get("steps", torch.zeros(())) + 1
    for p in module.parameters():
        if p.grad is not None:
            p.grad *= value

def stats(module, value, state):
    return ClipStats(*torch.ones(3), torch.tensor(True))

number = 3
def two(module, value): pass
def raises(module, value, state): raise RuntimeError("no\\nmore")
def second(module, value, state):
    if state: 1 / 0
    state["seen"] = torch.ones(())
def words(module, value, state): return "clipped"
def vectors(module, value, state): return ClipStats(torch.ones(2), torch.ones(()), torch.ones(()))
def remembers(module, value, state): state["n"] = 1
def replaces(module, value, state):
    for p in module.parameters(): p.grad = p.grad * 1
def infects(module, value, state):
    for p in module.parameters(): p.grad *= float("nan")
def norm(module, value, state): pass
class Made:
    def __init__(self, module, value, state): pass
"""


@pytest.fixture
def rules(tmp_path: Any) -> Callable[[str], str]:
    (tmp_path / "rules.py").write_text(RULES)
    return lambda name: f"{tmp_path}/rules.py:{name}"


def test_an_own_rule_clips_and_remembers(rules: Callable[[str], str]) -> None:
    module, clipper = network(), Clipper(rules("half"), 0.5, exclude=["0.*"])
    clipper.check(module)
    assert all(p.grad is None for p in module.parameters())
    for steps in (1, 2):
        give(module, 4.0)
        first = module[0].weight.grad.clone()
        inner = module[1].weight.grad.clone()
        stats = clipper.clip_(module)
        assert torch.equal(module[0].weight.grad, first)
        assert torch.equal(module[1].weight.grad, inner / 2)
        assert float(stats.norm_preclip) == pytest.approx(4.0)
        assert float(stats.norm_postclip) == pytest.approx(float(total_norm(module)))
        assert float(stats.clipped_fraction) == 1
        assert clipper.state_dict() == {"steps": torch.tensor(float(steps))}


def test_an_own_rule_may_report_for_itself_and_leave_steps_out(rules: Callable[[str], str]) -> None:
    module = network()
    give(module, 4.0)
    assert Clipper(rules("stats"), 1.0).clip_(module) == ClipStats(*torch.ones(3), torch.tensor(True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("number", {}, "be a function"),
        ("two", {}, r"take \(module, value, state\): too many positional arguments"),
        ("raises", {}, "not raise, and raised RuntimeError: no"),
        ("second", {}, "not raise, and raised ZeroDivisionError: division by zero"),
        ("words", {}, "return ClipStats or None, not str"),
        ("Made", {}, "return ClipStats or None, not Made"),
        ("vectors", {}, r"return tensors of no axes, and norm_preclip is tensor\(\[1., 1.\]\)"),
        ("remembers", {}, "keep tensors alone in its state, and n is int"),
        ("replaces", {}, "change gradients in place"),
        ("infects", {}, "leave finite gradients finite"),
        ("norm", {}, "not be called norm, as a built-in rule is"),
        ("missing", {}, "be in .*rules.py, which has no missing"),
        ("half", {"last": 1}, r"`options.last` \(=1\) must be an option of .*:half, which takes least, word"),
        ("half", {"least": "a"}, r"`options.least` \(=a\) must be a valid number, .*"),
        ("half", {"word": 3}, r"`options.word` \(=3\) must be a valid string"),
    ],
)
def test_an_own_rule_that_breaks_the_contract_is_refused(
    rules: Callable[[str], str], name: str, options: dict[str, Any], message: str
) -> None:
    line = message if options else rf"`algorithm` \(=.*rules.py:{name}\) must {message}"
    with pytest.raises(ValueError, match=f"^{line}$"):
        Clipper(rules(name), 1.0, options=options).check(network())


def test_the_trial_of_an_own_rule_leaves_the_random_numbers_alone(rules: Callable[[str], str]) -> None:
    clipper, before = Clipper(rules("half"), 0.5), torch.get_rng_state()
    clipper.check(network())
    assert torch.equal(torch.get_rng_state(), before)
    assert clipper.state_dict() == {}


def _grads(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", HISTORIES)
def test_cuda_does_not_synchronise_and_agrees_with_the_cpu(rule: str) -> None:
    on_cpu, on_gpu = network(), network().cuda()
    first, second = Clipper(rule, LIMITS[rule]), Clipper(rule, LIMITS[rule])
    for step, norm in enumerate(norms_of(150)):
        give(on_cpu, norm, step)
        for p, q in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
            q.grad = p.grad.cuda()
        first.clip_(on_cpu)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            second.clip_(on_gpu)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        for p, q in zip(_grads(on_cpu), _grads(on_gpu), strict=True):
            torch.testing.assert_close(q.cpu(), p, rtol=1e-4, atol=1e-7)
