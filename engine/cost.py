"""What one training image costs, counted from the operators that really run: FLOPs, and bytes to and from memory.

FLOPs are torch's FlopCounterMode: convolutions and matrix products, a multiply-add being 2. Norms, activations and
pooling (0.2% of this network) are not counted.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from engine.convolution import use_torch_gradients


@dataclass(frozen=True)
class Traffic:
    """Bytes that the operators of one training image read and write."""

    least: float
    """Of convolutions and matrix products alone, as if all else were fused into them: nothing can move fewer."""
    eager: float
    """Of every operator by itself, as without torch.compile."""


def training_flops(model: nn.Module, resolution: int) -> int:
    """FLOPs of the forward and backward pass of one image.

    Counting runs one black image through a copy of the model on the CPU: 40 ms at width 64 and 32 px.
    """
    image, replica = one_image_and_copy(model, resolution)
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():
        replica(image).sum().backward()
    return counter.get_total_flops()


def training_traffic(model: nn.Module, resolution: int, dtype: torch.dtype) -> Traffic:
    """Bytes of the forward and backward pass of one image in mixed precision of `dtype`, float32 for none.

    The difference between a batch of two and of four: what a batch pays once, the weights, is left out.
    """
    few, many = (_batch_traffic(model, resolution, dtype, images) for images in (2, 4))
    return Traffic((many.least - few.least) / 2, (many.eager - few.eager) / 2)


def one_image_and_copy(model: nn.Module, resolution: int) -> tuple[Tensor, nn.Module]:
    """One black uint8 image (1, 3, R, R) and a copy of the model on the CPU, in eval mode so that one image will do.

    Not on the meta device, which would compute nothing: torch.autocast, which the model's head leaves, refuses it.
    """
    image = torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8, device="cpu")
    replica = copy.deepcopy(model).cpu().eval()
    use_torch_gradients(replica)  # what is counted is the convolution, whatever computes it
    return image, replica


def _batch_traffic(model: nn.Module, resolution: int, dtype: torch.dtype, count: int) -> Traffic:
    image, replica = one_image_and_copy(model, resolution)
    images = image.expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    replica.train().to(memory_format=torch.channels_last)
    counter = _ByteCounter()
    enabled = dtype != torch.float32
    with counter, torch.enable_grad():
        with torch.autocast("cpu", dtype if enabled else torch.bfloat16, enabled=enabled):
            loss = replica(images).sum()
        loss.backward()
    return Traffic(counter.products, counter.everything)


class _ByteCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products, self.everything = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        run: Callable[..., Any] = func
        result = run(*args, **(kwargs or {}))
        given = {id(t): t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        # A view moves nothing; an operator in place reads and writes.
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        if not view:
            moved = sum(t.numel() * t.element_size() for t in [*given.values(), *made])
            self.everything += moved
            name = func._schema.name
            if "convolution" in name or name.removeprefix("aten::") in ("mm", "addmm", "bmm"):
                self.products += moved
        return result
