"""`fnostab check-arch`: what it finds of networks with a fault each, and that it finds none in those that have none."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fnostab.cli import main
from fnostab.models.probing import Trial, inert_layers, repeats

#: A network whose `{...}` are filled with a fault.
_NETWORK = """
import os, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden_channels):
        super().__init__()
        self.lift = nn.Conv2d(1, hidden_channels, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1) for _ in range(2))
        self.out = nn.Conv2d(hidden_channels, 2, 1)
        {init}

    def forward(self, x):
        x = torch.tanh(self.lift(x))
        for block in self.blocks:
            {step}
        return self.out(x).movedim(1, -1).unsqueeze(3){end}
"""
_GOOD = {"init": "pass", "step": "x = x + torch.tanh(block(x))", "end": ""}
#: What is wrong, and lines of the table that say so.
FAULTS = {
    "nothing": (
        {},
        ["dead parameters  none", "inert layers     none", "repeats          bit for bit"],
        "fit for training",
    ),
    "a layer that never runs": (
        {"init": "self.more = nn.Linear(3, 3)"},
        ["dead parameters  2: more.bias, more.weight (no gradient, or zeros, in 3 steps)"],
        "not fit for training: it has dead parameters",
    ),
    "blocks whose output goes nowhere": (
        {"step": "x = x + 0 * block(x)"},
        [
            "dead parameters  4: blocks.0.bias, blocks.0.weight, blocks.1.bias, blocks.1.weight",
            "inert layers     2: blocks.0, blocks.1 (the result does not depend on them)",
        ],
        "not fit for training: it has dead parameters; it has inert layers",
    ),
    "weights from the system's random numbers": (
        {"init": "nn.init.constant_(self.out.bias, int.from_bytes(os.urandom(4), 'big') / 2**32)"},
        ["repeats          NO: two trainings from one seed differ"],
        "not fit for training: it does not repeat",
    ),
    "a branch on what it is given": (
        {"end": " * (1 if x.sum() > 0 else 2)"},
        ["pt2 export       NO: it must export to pt2"],
        "not fit for training: it does not export to pt2",
    ),
    "channels that come first": (
        {"end": ".movedim(-1, 1)"},
        ["output      WRONG: it must give (B, N, N, C, 2), here (2, 32, 32, 1, 2), and gave (2, 2, 32, 32, 1)"],
        "not fit for training: it breaks a rule for networks",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_decides_the_exit_code(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    fault, lines, verdict = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(_NETWORK.format(**_GOOD | fault))
    code = main(["check-arch", "./net.py:Net", "--preset", "smoke", "--width", "3", "--batch_size", "2"])
    said = capsys.readouterr().out
    for line in lines:
        assert f"\n{line}" in f"\n{said}"
    assert said.splitlines()[-1] == f"net.py:Net: {verdict}"
    assert code == (0 if verdict == "fit for training" else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py"]


def test_a_built_in_network_is_fit(capsys) -> None:
    given = ("--preset", "smoke", "--width", "2", "--batch_size", "2")
    assert main(["check-arch", "stable_hybrid", *given]) == 0
    said = capsys.readouterr().out
    assert "output           2 x 32 x 32 x 1 x 2 for (B, N, N, C, 2)" in said
    assert said.endswith("stable_hybrid: fit for training\n")


def test_a_network_that_is_not_there_is_bad_input(capsys) -> None:
    assert main(["check-arch", "./net.py:Net"]) == 2
    assert capsys.readouterr().err == (
        "fnostab: error: `model.arch` (=./net.py:Net) must be in a readable file: No such file or directory\n"
    )


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lost = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
        self.used = nn.Conv2d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.lost(x)
        return self.used(x).movedim(1, -1).unsqueeze(3)


def test_of_layers_inside_each_other_the_outermost_inert_one_is_named() -> None:
    assert inert_layers(_Nested(), torch.rand(2, 1, 8, 8)) == ["lost"]


def test_what_gets_a_gradient_after_the_first_step_is_not_dead() -> None:
    class Gated(_Nested):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + self.gate * self.lost(x))

    trial = Trial(Gated, 8, 1)
    trial.step()
    assert "lost.0.weight" in trial.unmoved
    trial.step()
    assert trial.unmoved == set()
    assert repeats(Gated, 8, 1)
