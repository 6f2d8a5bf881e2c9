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
                # On a GPU zeros are cheaper than launches; on a CPU they cost up to a sixth.
                updates = orthogonalize(updates, self._dtype, padded=updates[0].is_cuda)
                scales = torch._foreach_norm(parameters)
                torch._foreach_reciprocal_(scales)
                torch._foreach_mul_(scales, [len(p) ** 0.5 for p in parameters])
                torch._foreach_mul_(parameters, scales)
            if isinstance(group["lr"], Tensor):  # on the device, for a CUDA graph
                torch._foreach_mul_(updates, group["lr"])
                torch._foreach_sub_(parameters, updates)
            else:
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def orthogonalize(updates: list[Tensor], dtype: torch.dtype, padded: bool = False) -> list[Tensor]:
    """Each tensor (out, in, h, w) as a matrix (out, h * w * in) with all singular values near 1.

    Matrices of one shape go together, with `padded` all of one smaller side M: few and larger products.

                 h * w * in   N                         out                 N
        M = out | update    | 0 |      M = h * w * in | update transposed | 0 |
    """
    classes: dict[Any, list[int]] = defaultdict(list)
    for i, update in enumerate(updates):
        classes[min(len(update), update[0].numel()) if padded else update.shape].append(i)
    new = updates[0].new_zeros if padded else updates[0].new_empty
    places, stacks = list(updates), []
    for indices in classes.values():
        sides = [(len(updates[i]), updates[i][0].numel()) for i in indices]
        stacks.append(new((len(indices), min(sides[0]), max(map(max, sides))), dtype=dtype))
        for i, matrix in zip(indices, stacks[-1], strict=True):
            places[i] = _place(matrix, updates[i].shape)
    _copy_(places, updates)
    for stack, indices in zip(stacks, classes.values(), strict=True):
        for i, matrix in zip(indices, newton_schulz(stack), strict=True):
            places[i] = _place(matrix, updates[i].shape)
    results = [torch.empty_like(update) for update in updates]
    _copy_(results, places)
    return results


def _place(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The view (out, in, h, w) of a filter bank in its matrix (M, N).

    It is channels_last, as the filters are: columns may have any order.
    """
    out, channels, height, width = shape
    columns = channels * height * width
    wide = matrix[:, :columns] if out <= columns else matrix[:, :out].mT
    return wide.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)


def _copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy and cast each: on a GPU with one kernel for all that lie alike, and one for each other."""
    for alike in (True, False):
        pairs = [
            (target, source)
            for target, source in zip(targets, sources, strict=True)
            if (target.stride() == source.stride()) == alike
        ]
        if pairs:
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


def newton_schulz(matrices: Tensor) -> Tensor:
    """(K, M, N), M <= N, with its singular vectors and singular values near 1 (Newton-Schulz)."""
    a, b, c = QUINTIC
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        # Folded, (a I + b A + c A A) x copies no x, but has 1.3 to 4 times the error in bfloat16.
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
