import math

import pytest
import torch
from torch import nn

from fnostab.models.hybrid import HybridUNOGenerator, PreNormHybridUNOGenerator, StableHybridUNOGenerator
from fnostab.models.layers import block_statistics, fingerprints, first_bad_layer, moved, norm_statistics


def _network(cls=HybridUNOGenerator, **arguments):
    torch.manual_seed(0)
    return cls(hidden_channels=4, n_blocks=3, modes=4, N=16, min_resolution=8, **arguments)


def _patterns():
    return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def _loss(network):
    return lambda: network(_patterns()).square().mean()


def test_blocks_are_observed_in_the_order_in_which_they_run():
    network = _network()
    found = block_statistics(network, lambda: network(_patterns()))
    blocks = ["encoder.0.0", "encoder.1.0", "encoder.1.1", "bottleneck"]
    assert list(found) == [f"{name}/{block}" for block in blocks for name in ("act_mean", "act_std", "update_std")]


def test_the_statistics_are_those_of_the_blocks_output():
    network = _network()
    found = block_statistics(network, lambda: network(_patterns()))
    with torch.no_grad():
        output = network.encoder[0](network.lifter(_patterns()))
    assert found["act_mean/encoder.0.0"] == pytest.approx(output.mean().item(), rel=1e-6)
    assert found["act_std/encoder.0.0"] == pytest.approx(output.std(correction=0).item(), rel=1e-6)


def test_the_update_of_a_block_varies_over_batch_and_pixels_or_is_constant_and_counts_as_nothing():
    network = _network()
    found = block_statistics(network, lambda: network(_patterns()))
    with torch.no_grad():
        update = network.encoder[0][0].update(network.lifter(_patterns()))
    expected = update.std((0, 2, 3), correction=0).mean()
    assert found["update_std/encoder.0.0"] == pytest.approx(expected.item(), rel=1e-6)
    assert found["update_std/encoder.0.0"] > 1e-3
    with torch.no_grad():  # far out, where GELU is 0 and the block adds nothing to whatever it gets
        network.encoder[0][0].local.bias.fill_(-1e3)
        network.bottleneck.spectral.weight.zero_()  # and where it adds the same to all
        network.bottleneck.local.weight.zero_()
    found = block_statistics(network, lambda: network(_patterns()))
    assert found["update_std/encoder.0.0"] == found["update_std/bottleneck"] == 0
    assert found["update_std/encoder.1.0"] > 1e-3


def test_a_tensor_that_changes_in_its_last_bit_has_moved_and_one_that_is_not_learnt_does_not_count():
    network = _network(StableHybridUNOGenerator, norm_bias=False)
    before = fingerprints(network)
    assert list(before) == ["encoder.0.0", "encoder.1.0", "encoder.1.1", "bottleneck"]
    assert {len(of_block) for of_block in before.values()} == {4}  # spectral, local weight and bias, norm's weight
    assert moved(before, fingerprints(network)) == {
        "parameters_moved": 0,
        **{f"moved/{name}": 0 for name in before},
    }
    with torch.no_grad():
        weight = network.encoder[1][0].local.weight
        weight[1, 2, 0, 1] = torch.nextafter(weight[1, 2, 0, 1], torch.tensor(9.0))
        network.bottleneck.norm.bias.fill_(1.0)
        network.lifter[0].weight.fill_(1.0)  # of no block
    found = moved(before, fingerprints(network))
    assert found["parameters_moved"] == 1 / 16
    assert found["moved/encoder.1.0"] == 1 / 4
    assert found["moved/bottleneck"] == 0


def test_all_parameters_of_a_network_without_blocks_count_of_whatever_type():
    network = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1).double())
    network.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    before = fingerprints(network)
    with torch.no_grad():
        network.phase[1] = 2j
        network[1].bias.mul_(1 + 1e-15)
    assert moved(before, fingerprints(network)) == {"parameters_moved": 2 / 5}
    frozen = nn.Linear(2, 1).requires_grad_(False)
    assert math.isnan(moved(fingerprints(frozen), fingerprints(frozen))["parameters_moved"])


def test_a_plain_block_moves_the_mean_and_a_stable_one_that_is_switched_off_does_not():
    means = {}
    for cls in (HybridUNOGenerator, StableHybridUNOGenerator):
        network = _network(cls)
        before = network.lifter(_patterns()).mean().item()
        found = block_statistics(network, lambda network=network: network(_patterns()))
        means[cls] = found["act_mean/encoder.0.0"] - before
    assert abs(means[HybridUNOGenerator]) > 1e-3
    assert means[StableHybridUNOGenerator] == pytest.approx(0, abs=1e-6)


def test_norm_weights_and_layerscale_are_summarised_over_blocks_and_block_by_block():
    network = _network(StableHybridUNOGenerator, layerscale_init=0.1)
    with torch.no_grad():
        network.bottleneck.norm.weight[1] = -0.5
    found = norm_statistics(network)
    assert found["norm_weight_absmax"] == found["norm_weight_absmax_of/bottleneck"] == 0.5
    assert found["norm_weight_absmax_of/encoder.0.0"] == 0
    assert found["norm_weight_absmean"] == pytest.approx(0.5 / (4 + 8 + 8 + 8))
    assert found["layerscale_absmax"] == pytest.approx(0.1)
    assert found["layerscale_absmean"] == pytest.approx(0.1)


def test_a_network_without_stable_blocks_has_no_norm_weights():
    assert norm_statistics(_network()) == norm_statistics(_network(PreNormHybridUNOGenerator)) == {}


def test_a_healthy_step_has_no_bad_layer():
    network = _network()
    assert first_bad_layer(network, _loss(network)) is None


def test_the_first_layer_that_overflows_is_named():
    network = _network()
    with torch.no_grad():
        network.encoder[1][0].local.weight.fill_(3e38)
    assert first_bad_layer(network, _loss(network)) == "encoder.1.0.local"


def test_a_bad_weight_is_named_by_its_layer():
    network = _network()
    with torch.no_grad():
        network.bottleneck.spectral.weight[0, 0, 0, 0, 0] = float("nan")
    assert first_bad_layer(network, _loss(network)) == "bottleneck.spectral"


def test_a_loss_that_overflows_on_finite_outputs_is_named():
    network = _network()
    with torch.no_grad():
        network.out.weight.fill_(1e25)
    assert first_bad_layer(network, _loss(network)) == "loss"


def test_of_bad_gradients_the_layer_nearest_to_the_loss_is_named():
    network = _network()

    def loss():
        return (network(_patterns()) * 0).sqrt().sum()  # the root's slope at 0 is infinite

    assert first_bad_layer(network, loss) == "out (gradient)"


def test_where_only_the_norm_of_finite_gradients_overflows_the_largest_is_named():
    network = _network()
    assert first_bad_layer(network, lambda: 1e25 * network.out(torch.ones(1, 4, 2, 2)).sum()) == "out (gradient)"


def test_looking_leaves_no_gradients_and_no_hooks_behind():
    network = _network()
    first_bad_layer(network, _loss(network))
    block_statistics(network, lambda: network(_patterns()))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_hooks_are_removed_also_when_the_network_raises():
    network = _network()
    with pytest.raises(RuntimeError):
        block_statistics(network, lambda: network(torch.zeros(1, 3, 16, 16)))
    assert not any(isinstance(layer, nn.Module) and layer._forward_hooks for layer in network.modules())
