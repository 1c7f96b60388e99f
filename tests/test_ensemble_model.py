"""Several networks as one: the mean of their patches, its phase, and the deviation."""

import itertools

import numpy as np
import onnxruntime
import pytest
import torch

from fnostab.config import resolve_config
from fnostab.export.agreement import TOLERANCE, check_agreement, trial_batches
from fnostab.export.conversion import content_of, convert
from fnostab.export.layouts import fnostab_layout
from fnostab.models import build_generator
from fnostab.models.ensemble import Ensemble
from fnostab.training.shipped_model import CountsToObject

N = 8


class Fixed(torch.nn.Module):
    """Gives the same patch, complex (N, N) or of a group (C, N, N), for every pattern or group."""

    def __init__(self, patch):
        super().__init__()
        self.register_buffer("parts", torch.view_as_real(patch))

    def forward(self, counts):
        return self.parts.expand(len(counts), *self.parts.shape)


def random_patches(n, seed=0, shape=(N, N)):
    return torch.randn((n, *shape), dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def light():
    axis = torch.linspace(-2, 2, N)
    return torch.exp(-(axis[:, None] ** 2) - axis**2)


def predict(patches, weight=None, counts=None):
    """What an ensemble of members that always give `patches` predicts: its mean, complex, and its deviation."""
    network = Ensemble([Fixed(patch) for patch in patches], light() if weight is None else weight)
    parts = network(torch.ones((2, *patches.shape[1:])) if counts is None else counts)
    assert parts.shape[-1] == 3
    assert torch.equal(parts[0], parts[1])
    return torch.complex(parts[0, ..., 0], parts[0, ..., 1]), parts[0, ..., 2]


def turned(patches, phases):
    return patches * torch.polar(torch.ones(len(phases)), torch.tensor(phases)).reshape(-1, 1, 1)


def test_members_that_differ_in_the_free_phase_alone_do_not_deviate():
    patch = random_patches(1)
    mean, deviation = predict(turned(patch.expand(4, N, N), [0.0, 1.0, -2.5, 3.1]))
    torch.testing.assert_close(mean, patch[0])
    assert deviation.max() < 1e-5


def test_the_deviation_is_that_of_the_members_from_their_mean():
    base = random_patches(1)
    patches = torch.cat([base * factor for factor in (1.0, 1.2, 1.7)])  # in phase already
    mean, deviation = predict(turned(patches, [0.0, 0.7, 2.0]))
    torch.testing.assert_close(mean, patches.mean(0))
    expected = (patches - patches.mean(0)).abs().square().mean(0).sqrt()
    torch.testing.assert_close(deviation, expected)


def test_the_phases_are_those_of_least_deviation_in_the_light():
    patches = random_patches(3) + 0.4 * random_patches(1, seed=1)
    _, deviation = predict(patches)
    found = float((light() * deviation.square()).sum())
    for phases in itertools.product([0.0], *[np.linspace(-np.pi, np.pi, 25)[:-1]] * 2):
        each = turned(patches, [float(phase) for phase in phases])
        variance = (each - each.mean(0)).abs().square().mean(0)
        assert found <= float((light() * variance).sum()) + 1e-6


def test_what_members_give_in_the_dark_turns_nothing():
    dark = torch.ones(N, N)
    dark[: N // 2] = 0
    patches = random_patches(1).expand(3, N, N).clone()
    patches[:, : N // 2] += 50 * random_patches(3, seed=1)[:, : N // 2]
    mean, deviation = predict(patches, weight=dark)
    torch.testing.assert_close(mean[N // 2 :], patches[0, N // 2 :])
    assert deviation[N // 2 :].max() < 1e-5
    assert deviation[: N // 2].min() > 1


def test_the_order_of_the_members_changes_the_common_phase_alone():
    patches = 0.3 * random_patches(4) + random_patches(1, seed=1)
    patches = turned(patches, [0.3, -1.0, 2.0, 3.0])
    mean, deviation = predict(patches)
    other, same = predict(patches[[2, 0, 3, 1]])
    torch.testing.assert_close(deviation, same, rtol=1e-4, atol=1e-5)
    phase = torch.angle((light() * other * mean.conj()).sum())
    torch.testing.assert_close(other * torch.polar(torch.ones(()), -phase), mean, rtol=1e-3, atol=1e-4)


def test_each_pattern_of_a_group_has_a_phase_of_its_own():
    groups = random_patches(1, shape=(4, N, N)).expand(2, 4, N, N).clone()
    groups[1] = turned(groups[1], [0.1, 1.0, 2.0, 3.0])
    mean, deviation = predict(groups)
    torch.testing.assert_close(mean, groups[0])
    assert deviation.max() < 1e-5


def test_patches_of_nothing_have_no_phase_and_no_deviation():
    mean, deviation = predict(torch.zeros((3, N, N), dtype=torch.complex64))
    assert torch.equal(mean, torch.zeros_like(mean))
    assert torch.equal(deviation, torch.zeros_like(deviation))


def test_one_network_is_no_ensemble():
    with pytest.raises(ValueError, match=r"`members` \(=1\) must be at least 2 networks"):
        Ensemble([Fixed(random_patches(1)[0])], light())


def _exported_members(C, size):
    """Three networks of different weights as runs ship them, exported to pt2."""
    config = resolve_config({"arch": "hybrid", "data.N": size, "width": 2, "fno_blocks": 1, "model.modes": 4})
    example = torch.rand((2, size, size) if C == 1 else (2, C, size, size))
    for seed in range(3):
        torch.manual_seed(seed)
        shipped = CountsToObject(build_generator(config.model, size, C), 0.1, C).eval()
        yield torch.export.export(shipped, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}]).module()


@pytest.mark.parametrize("C", [1, 4])
def test_exported_members_become_an_export_and_an_onnx_file_that_give_the_same(C, tmp_path):
    size, members = 16, list(_exported_members(C, 16))
    network = Ensemble(members, torch.rand(size, size))
    counts = 100 * torch.rand((5, size, size) if C == 1 else (5, C, size, size))
    with torch.inference_mode():
        expected = network(counts)
    assert expected.shape == (*counts.shape, 3)
    program = torch.export.export(network, (counts[:2],), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    torch.export.save(program, tmp_path / "m.pt2")
    with torch.inference_mode():
        again = torch.export.load(tmp_path / "m.pt2").module()(counts)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)

    layout = fnostab_layout(torch.export.load(tmp_path / "m.pt2").module(), size, C, has_deviation=True)
    content = content_of(convert(layout), {}, "fnostab 0")
    assert check_agreement(content, layout, trial_batches(layout, counts.shape[1:], None, None)) <= TOLERANCE
    (parts,) = onnxruntime.InferenceSession(content).run(["patches"], {"counts": counts.numpy()})
    np.testing.assert_allclose(parts, expected.numpy(), rtol=0, atol=2e-5 * expected.abs().max())


def test_a_deviation_that_differs_is_a_deviation_of_the_file():
    """Agreement looks at the third value, not at the patches alone."""
    members = list(_exported_members(1, 16))
    pair = [Ensemble(members, torch.ones(16, 16)), Ensemble([*members[:2], members[1]], torch.ones(16, 16))]
    layout = fnostab_layout(pair[0], 16, 1, has_deviation=True)
    parts = [network(torch.ones(2, 16, 16)).detach().numpy() for network in pair]
    mixed = np.concatenate([parts[0][..., :2], parts[1][..., 2:]], axis=-1)
    assert np.abs(layout.to_patches(mixed) - layout.to_patches(parts[0])).max() > 1e-3
