import io

import jaxtyping
import pytest
import torch

from fnostab.config import ARCHITECTURES, ModelConfig
from fnostab.models import build_generator, resolve_generator
from fnostab.models.blocks import Level, PreNormPtychoBlock, PtychoBlock, StablePtychoBlock, encoder_levels
from fnostab.models.cnn import CNNGenerator
from fnostab.models.hybrid import HybridUNOGenerator, StableHybridUNOGenerator
from fnostab.models.registry import GENERATORS


def build(arch, N=64, **settings):
    torch.manual_seed(0)
    return build_generator(ModelConfig(arch=arch, **{"width": 4, **settings}), N).eval()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("N", [64, 128])
@pytest.mark.parametrize("blocks", [1, 4, 16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_patterns_become_complex_patches(arch, blocks, N):
    with torch.no_grad():
        patches = build(arch, N, fno_blocks=blocks)(torch.randn(2, 1, N, N))
    assert patches.shape == (2, N, N, 1, 2)
    assert torch.view_as_complex(patches).shape == (2, N, N, 1)
    assert patches.isfinite().all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_network_runs_on_grids_it_was_not_built_for(arch):
    network = build(arch, N=32)
    with torch.no_grad():
        for size in (22, 33, 64):
            assert network(torch.randn(1, 1, size, size)).shape == (1, size, size, 1, 2)


def test_several_patches_at_once_keep_their_channels():
    network = HybridUNOGenerator(hidden_channels=4, n_blocks=2, modes=3, C=4, N=16)
    assert network(torch.randn(2, 4, 16, 16)).shape == (2, 16, 16, 4, 2)


def test_four_blocks_are_the_original_topology():
    assert encoder_levels(64, 32, 4, 8, 256) == [
        Level(32, 64, 1),
        Level(64, 32, 1),
        Level(128, 16, 1),
        Level(256, 8, 1),
    ]


def test_further_blocks_stay_at_the_last_resolution_and_width():
    assert encoder_levels(64, 32, 8, 8, 256)[-1] == Level(256, 8, 5)
    assert [level.channels for level in encoder_levels(64, 32, 12, 8, 64)] == [32, 64, 64, 64]
    assert encoder_levels(64, 512, 2, 8, 256)[-1].channels == 512  # wider than the limit from the start: not narrowed


@pytest.mark.parametrize("arch", ["hybrid", "stable_hybrid"])
def test_depth_does_not_explode_the_parameter_count(arch):
    with torch.device("meta"):
        counts = [parameters(build(arch, width=32, fno_blocks=blocks)) for blocks in (4, 8, 12, 16)]
    per_block = {(deeper - shallower) / 4 for shallower, deeper in zip(counts, counts[1:], strict=False)}
    assert len(per_block) == 1  # the same few million for every block on the last grid
    assert counts[0] < 30e6
    assert counts[-1] < 100e6


def test_bottleneck_has_half_the_modes():
    assert HybridUNOGenerator(hidden_channels=2, n_blocks=1, modes=5, N=32).bottleneck.spectral.modes == 2
    assert HybridUNOGenerator(hidden_channels=2, n_blocks=1, modes=1, N=32).bottleneck.spectral.modes == 1


@pytest.mark.parametrize("layerscale_init", [None, 1e-3])
def test_stable_block_is_the_identity_at_step_0(layerscale_init):
    block = StablePtychoBlock(6, modes=3, resolution=16, layerscale_init=layerscale_init)
    x = torch.randn(2, 6, 16, 16)
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-6)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().min() > 0  # and it can leave the identity


def test_stable_block_update_has_zero_mean_and_unit_deviation_with_weight_1():
    block = StablePtychoBlock(6, modes=3, resolution=16, gamma_init=1.0)
    x = torch.randn(2, 6, 16, 16)
    update = block(x) - x
    assert update.mean(dim=(-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(update.std(dim=(-2, -1), correction=0), torch.ones(2, 6), rtol=1e-2, atol=0)


def test_layerscale_multiplies_the_update():
    torch.manual_seed(0)
    block = StablePtychoBlock(6, modes=3, resolution=16, gamma_init=1.0, layerscale_init=1e-3)
    x = torch.randn(2, 6, 16, 16)
    small = block(x) - x
    torch.nn.init.ones_(block.layerscale)
    torch.testing.assert_close(1e3 * small, block(x) - x, rtol=0, atol=1e-3)


def test_plain_block_is_residual_gelu_of_both_paths():
    block = PtychoBlock(4, modes=3, resolution=16)
    x = torch.randn(2, 4, 16, 16)
    expected = x + torch.nn.functional.gelu(block.spectral(x) + block.local(x))
    torch.testing.assert_close(block(x), expected)


def test_settings_of_stable_blocks_reach_every_block():
    network = build("stable_hybrid", gamma_init=0.5, layerscale_init=1e-3)
    blocks = [module for module in network.modules() if isinstance(module, StablePtychoBlock)]
    assert len(blocks) == 5
    assert all((block.norm.weight == 0.5).all() and (block.layerscale == 1e-3).all() for block in blocks)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_tensor_gets_a_gradient(arch):
    network = build(arch, N=32, gamma_init=1.0)
    network(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.abs().any()] == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_exported_program_survives_saving_and_takes_any_batch(arch):
    network, x = build(arch, N=32, fno_blocks=2), torch.randn(3, 1, 32, 32)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        for patterns in (torch.randn(1, 1, 32, 32), x, torch.randn(7, 1, 32, 32)):
            torch.testing.assert_close(loaded(patterns), network(patterns))


def test_state_dict_keys_are_stable():
    # Checkpoints and registered models depend on them: renaming an attribute breaks every one.
    network = StableHybridUNOGenerator(hidden_channels=2, n_blocks=2, modes=3, N=16, layerscale_init=1e-3)
    block = ["layerscale", "spectral.weight", "local.weight", "local.bias", "norm.weight", "norm.bias"]
    assert list(network.state_dict()) == [
        *(f"lifter.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"encoder.{level}.0.{name}" for level in (0, 1) for name in block),
        "downs.0.weight",
        "downs.0.bias",
        *(f"bottleneck.{name}" for name in block),
        "ups.0.up.weight",
        "ups.0.up.bias",
        *(f"ups.0.convs.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        "out.weight",
        "out.bias",
    ]


def test_registry_and_config_know_the_same_names():
    assert tuple(GENERATORS) == ARCHITECTURES
    assert resolve_generator("stable_hybrid") is StableHybridUNOGenerator


def test_unknown_name_is_refused_with_the_known_ones():
    known = ", ".join(ARCHITECTURES)
    with pytest.raises(ValueError, match=rf"^`model\.arch` \(=hybird\) must be one of {known}, .*mean hybrid\?$"):
        resolve_generator("hybird")


def test_the_original_network_has_the_parameters_of_its_studys_log():
    network = build("hybrid_original", width=32)
    weights = {name: parameter for name, parameter in network.named_parameters() if name.endswith("spectral.weight")}
    assert parameters(network) == 32_095_458
    assert parameters(network) - sum(weight.numel() for weight in weights.values()) // 2 == 17_202_402
    assert {weight.shape[:2] for weight in weights.values()} == {(12, 12), (6, 6)}  # half in the bottleneck
    norms = sum(2 * level.channels for level in encoder_levels(64, 32, 4, 8, 256)) + 2 * 256
    assert parameters(build("stable_original", width=32)) == 32_095_458 + norms


@pytest.mark.parametrize("arch", ["hybrid_original", "stable_original"])
def test_the_original_networks_go_down_by_2x2_and_come_up_without_a_last_activation(arch):
    network = build(arch)
    assert {(down.kernel_size, down.stride) for down in network.downs} == {((2, 2), (2, 2))}
    up, x, skip = network.ups[0], torch.randn(1, 32, 8, 8), torch.randn(1, 16, 16, 16)
    assert isinstance(up.convs[-1], torch.nn.Conv2d)
    assert up(x, skip).min() < -0.2  # a GELU is never under -0.17


def test_the_original_network_takes_grids_whose_halves_are_odd():
    with torch.no_grad():
        assert build("hybrid_original", N=50)(torch.randn(1, 1, 50, 50)).shape == (1, 50, 50, 1, 2)


@pytest.mark.parametrize("name", ["hybrid", "stable_hybrid", "hybrid_original", "fno"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modes": 0}, r"^`modes` \(=0\) must be >= 1$"),
        ({"modes": 34}, r"^`modes` \(=34\) must be <= 33 at N=64$"),
        ({"n_blocks": 0}, r"^`n_blocks` \(=0\) must be >= 1$"),
        ({"hidden_channels": 0}, r"^`hidden_channels` \(=0\) must be >= 1$"),
        ({"C": 0}, r"^`C` \(=0\) must be >= 1$"),
        ({"N": 1}, r"^`N` \(=1\) must be >= 2$"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve_generator(name)(**arguments)


def test_grid_that_would_vanish_is_refused():
    with pytest.raises(ValueError, match=r"^`min_resolution` \(=1\) must be >= 2$"):
        CNNGenerator(min_resolution=1)


def test_block_that_could_never_learn_is_refused():
    with pytest.raises(ValueError, match=r"^`layerscale_init` \(=0\) must not be 0 where `gamma_init` is 0"):
        StablePtychoBlock(4, modes=2, resolution=8, layerscale_init=0)


def _block(cls, **arguments):
    torch.manual_seed(0)
    return cls(4, modes=3, resolution=16, **arguments)


def _image(scale=1.0):
    return scale * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def test_what_a_prenorm_block_adds_does_not_depend_on_its_channels_means_and_magnitudes():
    block = _block(PreNormPtychoBlock)
    scale, shift = torch.tensor([0.5, 2, 3, 7])[:, None, None], torch.tensor([-1.0, 4, 0, 9])[:, None, None]
    assert torch.allclose(block.update(_image()), block.update(scale * _image() + shift), atol=1e-4)
    # The identity path carries them on.
    assert torch.allclose(block(_image()), _image() + block.update(_image()))


def test_a_stable_block_whose_norm_is_not_centred_writes_means_of_root_mean_square_one():
    block = _block(StablePtychoBlock, gamma_init=1.0, norm_centred=False)
    update = block.update(_image())
    assert torch.allclose(update.square().mean((-2, -1)), torch.ones(2, 4), atol=1e-3)
    assert update.mean((-2, -1)).abs().min() > 0.05
    assert _block(StablePtychoBlock, gamma_init=1.0).update(_image()).mean((-2, -1)).abs().max() < 1e-5


def test_a_stable_block_without_a_norm_bias_never_learns_one():
    block = _block(StablePtychoBlock, gamma_init=1.0, norm_bias=False)
    block(_image()).square().mean().backward()
    assert block.norm.bias.grad is None
    assert block.norm.weight.grad is not None


def test_an_image_of_the_wrong_shape_is_noticed_by_the_annotations():
    with pytest.raises(jaxtyping.TypeCheckError, match="batch in_channels H W"):
        build("cnn", N=16, fno_blocks=1)(torch.randn(1, 16, 16))
