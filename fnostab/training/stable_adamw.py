"""AdamW with update clipping: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, Algorithm 2 (StableAdamW)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fnostab.gradients import as_real, gradient_of, parameters_with_gradient


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose learning rate falls, tensor by tensor, where the second moment lags behind the gradients.

    With gradient g and moments m, v corrected for their bias, RMS = sqrt(mean(g^2 / max(v, eps^2))) of each tensor, and

        eta = lr / max(1, RMS),   w <- w - eta * weight_decay * w - eta * m / (sqrt(v) + eps).

    The paper's moments with debiased betas are these. The update itself is torch's fused AdamW with the learning rate
    eta, so where the attribute `found_inf` is set and 1, a step changes nothing, on the device. Complex parameters are
    treated through their real views.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if parameters := parameters_with_gradient(group["params"]):
                self._step(parameters, group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), eps = group["betas"], group["eps"]
        gradients = [gradient_of(parameter) for parameter in parameters]
        states = [self._state(parameter) for parameter in parameters]
        squares = [state["exp_avg_sq"] for state in states]
        next_steps = torch.stack([state["step"] for state in states]) + 1
        # In single precision: what the kernels read of a learning rate on the device.
        etas = group["lr"] / _rms(gradients, squares, beta2, next_steps, eps).float().clamp(min=1)
        for parameter, gradient, state, eta in zip(parameters, gradients, states, etas.unbind(), strict=True):
            adamw(
                [as_real(parameter)],
                [gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                fused=True,
                found_inf=getattr(self, "found_inf", None),
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=eta,
                weight_decay=group["weight_decay"],
                eps=eps,
                maximize=False,
            )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Moments of one parameter, as real numbers, and its steps taken, on the device."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            weight = as_real(parameter)
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        state["step"] = state["step"].to(parameter.device)  # torch leaves it on the host when it loads a state
        return state


def _rms(gradients: list[Tensor], squares: list[Tensor], beta2: float, steps: Tensor, eps: float) -> Tensor:
    """RMS of each gradient over the root of its second moment after this step, `steps` being counted with it."""
    roots = torch._foreach_mul(squares, beta2)
    torch._foreach_addcmul_(roots, gradients, gradients, value=1 - beta2)
    torch._foreach_div_(roots, list((1 - beta2**steps).unbind()))
    torch._foreach_clamp_min_(roots, eps**2)
    torch._foreach_sqrt_(roots)
    ratios = torch._foreach_div(gradients, roots)
    norms = torch._foreach_norm(ratios, 2.0, dtype=torch.promote_types(ratios[0].dtype, torch.float32))
    torch._foreach_div_(norms, [gradient.numel() ** 0.5 for gradient in gradients])
    return torch.stack(norms)
