"""AdamW with update clipping: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, Algorithm 2 (StableAdamW)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fnostab.gradients import as_real, gradient_of, parameters_with_gradient


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose learning rate falls, tensor by tensor, where the second moment lags behind the gradients.

    With gradient g and moments m, v corrected for their bias, RMS = sqrt(mean(g^2 / max(v, eps^2))) of each tensor, and

        eta = lr / max(1, RMS),   w <- w - eta * weight_decay * w - eta * m / (sqrt(v) + eps).

    The paper's moments with debiased betas are these. Where the attribute `found_inf` is set and 1, a step changes
    nothing, on the device, as with torch's fused optimizers. Complex parameters are treated through their real views.
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
        (beta1, beta2), eps, weight_decay = group["betas"], group["eps"], group["weight_decay"]
        weights = [as_real(parameter) for parameter in parameters]
        states = [self._state(parameter, weight) for parameter, weight in zip(parameters, weights, strict=True)]
        m, v, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        device = weights[0].device
        found_inf: Tensor = getattr(self, "found_inf", torch.zeros((), device=device)).to(device)
        left_out = found_inf > 0
        # Zeros for gradients that may be NaN: what is multiplied with them must stay what it is.
        gradients = [gradient_of(parameter).masked_fill(left_out, 0) for parameter in parameters]
        taken = 1 - left_out.float()

        torch._foreach_add_(steps, taken)
        # Moments keep their value where nothing is taken: they are multiplied by 1, and 0 is added.
        torch._foreach_mul_(m, 1 - (1 - beta1) * taken)
        torch._foreach_add_(m, gradients, alpha=1 - beta1)
        torch._foreach_mul_(v, 1 - (1 - beta2) * taken)
        torch._foreach_addcmul_(v, gradients, gradients, value=1 - beta2)

        step = torch.stack(steps).clamp(min=1)  # 0 if the very first one is left out
        corrected = torch._foreach_div(v, list((1 - beta2**step).unbind()))
        ratios = torch._foreach_clamp_min(corrected, eps**2)
        torch._foreach_sqrt_(ratios)
        ratios = torch._foreach_div(gradients, ratios)
        norms = torch._foreach_norm(ratios, 2.0, dtype=torch.promote_types(ratios[0].dtype, torch.float32))
        torch._foreach_div_(norms, [weight.numel() ** 0.5 for weight in weights])
        eta = group["lr"] * taken / torch.stack(norms).clamp(min=1)

        if weight_decay:
            torch._foreach_mul_(weights, list((1 - eta * weight_decay).unbind()))
        torch._foreach_sqrt_(corrected)
        torch._foreach_add_(corrected, eps)
        updates = torch._foreach_div(m, corrected)
        torch._foreach_mul_(updates, list((eta / (1 - beta1**step)).unbind()))
        torch._foreach_sub_(weights, updates)

    def _state(self, parameter: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Moments, and the number of steps taken on the device, of one parameter; `weight` is its real view."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        state["step"] = state["step"].to(weight.device)  # torch leaves it on the host when it loads a state
        return state
