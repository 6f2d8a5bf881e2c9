"""SGD with Nesterov momentum, Muon for the stages' filters where a config asks for it, and their schedule."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine.config import Config
from engine.model import parameter_groups
from ground.mistake import Mistake

# Of the quintic iteration that moves all singular values towards 1; three rounds do, as in airbench94_muon.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 3
FINAL_DIV_FACTOR = 1e4  # the last step's learning rate is the first step's divided by this


def create_optimizer(model: nn.Module, config: Config, dtype: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of a config: each group's lr is its peak, the first one's `config.max_lr`.

    `dtype` is that of Muon's matrix products. Raises Mistake for a learning rate that is too large for the weights.
    """
    peaks = config.max_lr, config.max_lr * config.bias_lr_scale, config.muon_lr
    if not max(peaks) <= torch.finfo(torch.float32).max:
        raise Mistake("--max-lr, --max-lr times --bias-lr-scale or --muon-lr is too large for a float32")
    filters, weights, gains, biases = parameter_groups(model)
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": gains},
        {"params": biases, "lr": peaks[1]},
    ]
    if config.body_lr_scale != 1:
        head = list(model.get_submodule("fc").parameters())  # the ends of weights and of biases
        weights.pop(), biases.pop()
        body = config.max_lr * config.body_lr_scale
        groups = [
            {"params": head[:1], "weight_decay": config.weight_decay},
            {"params": head[1:], "lr": peaks[1]},
            {"params": weights, "weight_decay": config.weight_decay, "lr": body},
            {"params": gains, "lr": body},
            {"params": biases, "lr": body * config.bias_lr_scale},
        ]
    if config.muon_lr:
        groups.append({"params": filters, "lr": config.muon_lr, "momentum": config.muon_momentum, "orthogonal": True})
        return Muon(groups, lr=config.max_lr, momentum=config.momentum, dtype=dtype)
    weights += filters
    return torch.optim.SGD(groups, lr=config.max_lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def one_cycle(config: Config, peak: float, step: int, steps: int) -> float:
    """Learning rate of `step`, counted from 0, in a run of `steps`: a straight line up to `peak`, one down.

    OneCycle (Smith and Topin 2017, arXiv 1708.07120), to the last bit as torch's OneCycleLR with
    anneal_strategy="linear".
    """
    first = peak / config.div_factor
    last = first / FINAL_DIV_FACTOR
    top = config.pct_start * steps - 1  # the step of the peak, not always a whole number
    if step <= top and top > 0:
        return (peak - first) * (step / top) + first
    return (last - peak) * ((step - top) / (steps - 1 - top)) + peak


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum that replaces the update of a filter bank by its nearest orthogonal matrix.

    That is for groups with "orthogonal" set, whose filters (out, in, h, w) count as matrices (out, in * h * w).
    Before each step they are scaled to the norm sqrt(out), so their lr is relative and they need no weight decay.
    Other groups are torch's SGD. `dtype` is that of the matrix products, bfloat16 or float32. Source: Keller Jordan
    et al. 2024, Muon, and airbench94_muon.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float, weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": False}
        super().__init__(params, defaults)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient; a closure is not called."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            if group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            updates = list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))  # Nesterov's look ahead
            if group["orthogonal"]:
                updates = orthogonalize(updates, self._dtype)
                scales = torch._foreach_norm(parameters)
                torch._foreach_reciprocal_(scales)
                torch._foreach_mul_(scales, [len(p) ** 0.5 for p in parameters])
                torch._foreach_mul_(parameters, scales)
            if isinstance(group["lr"], Tensor):  # on the device, for a CUDA graph
                torch._foreach_mul_(updates, group["lr"])
                torch._foreach_sub_(parameters, updates)
            else:
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def orthogonalize(updates: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each tensor (out, in, h, w) as a matrix with all singular values near 1; those of one shape go together.

    The matrix is (out, h * w * in), of which a channels_last tensor is a view: its columns may have any order.
    """
    same_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for i, update in enumerate(updates):
        same_shape[update.shape].append(i)
    matrices, results = list(updates), [torch.empty_like(update) for update in updates]
    stacks = []
    for (out, channels, height, width), indices in same_shape.items():
        stacks.append(updates[0].new_empty((len(indices), out, height, width, channels), dtype=dtype))
        for i, matrix in zip(indices, stacks[-1], strict=True):
            matrices[i] = matrix.permute(0, 3, 1, 2)
    torch._foreach_copy_(matrices, updates)  # casts all at once
    for stack, indices in zip(stacks, same_shape.values(), strict=True):
        for i, result in zip(indices, newton_schulz(stack.flatten(2)).view(stack.shape), strict=True):
            matrices[i] = result.permute(0, 3, 1, 2)
    torch._foreach_copy_(results, matrices)
    return results


def newton_schulz(matrices: Tensor) -> Tensor:
    """(K, M, N) -> (K, M, N) with the same singular vectors and singular values near 1 (Newton-Schulz)."""
    a, b, c = QUINTIC
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(ROUNDS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT.contiguous() if tall else x
