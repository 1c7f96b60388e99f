"""The networks of neuraloperator, through the door that is open to any package: exported, trained, resumed, served."""

import os
import signal
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from fnostab.clipping import adaptive_gradient_clip_
from fnostab.config import ModelConfig, networks, resolve_config
from fnostab.io.endings import Interrupted
from fnostab.models import build_generator, neuralop
from fnostab.models.layers import block_statistics
from fnostab.study.plan import plan_file
from fnostab.training.checks import check_network
from fnostab.workflows.train import train_arm

NAMES = ("neuralop_fno", "neuralop_tfno", "neuralop_uno")

pytest.importorskip("neuralop.models", reason="needs neuraloperator 2 (a test dependency)")


def _network(name: str, **keys: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = {"width": 4, "fno_blocks": 2, "modes": 6} | keys
    return build_generator(ModelConfig(arch=name, **config), 32)


def test_the_package_offers_them_as_any_other_may() -> None:
    assert set(networks.installed_networks()) >= set(NAMES)
    plan = plan_file(Path("neuralop.yaml"), {"preset": "smoke"})
    assert [config.model.arch for config in plan.arms.values()] == ["hybrid", *NAMES]


@pytest.mark.parametrize(("name", "gridsize"), [(NAMES[0], 2), *((name, 1) for name in NAMES)])
def test_they_keep_the_rules_for_networks_and_export_for_batches_of_any_size(name: str, gridsize: int) -> None:
    keys = {"preset": "smoke", "arch": name, "width": 4, "data.gridsize": gridsize}
    check_network(resolve_config(keys))  # raises if not


def test_a_tucker_factorised_one_has_fewer_parameters_and_options_reach_the_library() -> None:
    dense, tucker = _network("neuralop_fno"), _network("neuralop_tfno")
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (dense, tucker)]
    assert count[1] < count[0] / 4
    assert dense.network.fno_blocks.norm is None
    assert len(_network("neuralop_fno", options={"norm": "instance_norm"}).network.fno_blocks.norm) > 0
    with pytest.raises(ValueError, match=r"^`model\.arch` \(=neuralop_fno\) must be buildable .* argument 'nrom'$"):
        _network("neuralop_fno", options={"nrom": 1})


def test_the_u_no_goes_down_and_up_as_far_as_the_built_in_hybrid() -> None:
    network = _network("neuralop_uno", fno_blocks=3).network
    assert [block.convs[0].out_channels for block in network.fno_blocks] == [4, 8, 16, 16, 16, 8, 4]
    shapes = []
    for block in network.fno_blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[-1]))
    network(torch.ones(1, 1, 32, 32))
    assert shapes == [32, 16, 8, 8, 8, 16, 32]


def test_a_state_holds_tensors_alone() -> None:
    for name in NAMES:
        inside_another = torch.nn.Sequential(_network(name))
        state = inside_another.state_dict()
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        inside_another.load_state_dict(state)


@pytest.mark.parametrize("name", NAMES)
def test_they_may_move_to_another_device_after_their_first_call(name: str) -> None:
    network, x = _network(name), torch.ones(1, 1, 32, 32)
    network(x)
    assert network.to("meta")(x.to("meta")).shape == (1, 32, 32, 1, 2)


def test_the_activations_of_their_spectral_layers_are_observed() -> None:
    network = _network("neuralop_fno")
    found = block_statistics(network, lambda: network(torch.rand(2, 1, 32, 32)))
    layers = [f"network.fno_blocks.convs.{place}" for place in range(2)]
    assert list(found) == [f"{kind}/{layer}" for layer in layers for kind in ("act_mean", "act_std")]


def test_adaptive_clipping_takes_output_channels_of_dense_complex_weights_for_units() -> None:
    network = _network("neuralop_fno")
    weight = network.network.fno_blocks.convs[0].weight.tensor
    weight.grad = torch.zeros_like(weight)
    weight.grad[:, 2] = 1e6 + 1e6j
    adaptive_gradient_clip_(network, 0.01)
    limit = 0.01 * torch.linalg.vector_norm(weight[:, 2])
    torch.testing.assert_close(torch.linalg.vector_norm(weight.grad[:, 2]), limit.detach())


def test_the_order_of_products_changes_nothing_but_the_last_bits() -> None:
    network, x = _network("neuralop_tfno").eval(), torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        before = network(x)
        with neuralop.batches_of_any_size():
            inside = network(x)
        torch.testing.assert_close(inside, before)
        assert torch.equal(network(x), before)


def test_a_factorised_one_trains_goes_on_bit_for_bit_and_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"data.max_train_patches": 64, "data.max_val_patches": 32, "train.threads": 1, "width": 4, "epochs": 2}
    config = resolve_config({"preset": "smoke", "arch": "neuralop_tfno", "study": "theirs", **tiny})
    whole = train_arm(config, lambda line: None)
    numbers = config.train.model_copy(update={"artifacts": "numbers"})
    resumed = config.model_copy(update={"study": "resumed", "train": numbers})
    with pytest.raises(Interrupted):
        train_arm(resumed, lambda line: None, watch=lambda done: os.kill(os.getpid(), signal.SIGTERM))
    again = train_arm(resumed, lambda line: None)
    assert again.history.to_json() == whole.history.to_json()
    model = mlflow.pyfunc.load_model(f"runs:/{whole.run_id}/model")
    counts = np.random.default_rng(0).poisson(100, (7, 32, 32)).astype(np.float32)
    assert model.predict(counts).shape == (7, 32, 32, 2)
