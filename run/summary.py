"""A model's layers in order: output shapes, parameters, forward FLOPs an image.

FLOPs are counted by torch's FlopCounterMode from the operators that really ran: convolutions and matrix products only,
a multiply-add being 2 FLOPs. Norms, activations and pooling (0.2% of this network) are not counted. Counting runs one
black image through a copy of the model on the CPU: 40 ms at width 64 and 32 px, and once 1 s for importing
torch._dynamo, which every optimizer imports too.

    python train.py             # prints it
"""

from functools import partial

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.cost import one_image_and_copy


def model_summary(model: nn.Module, resolution: int) -> Table:
    """A table of the layers that hold parameters, grouped by the model's children, for one image of that resolution.

    Its last line has the totals; parameters are sum(p.numel()). The model's weights, buffers, gradients and mode, and
    the random generators, are left as they are.
    """
    image, replica = one_image_and_copy(model, resolution)
    shapes: dict[str, str] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes[name] = " x ".join(map(str, output.shape[1:]))

    for name, module in replica.named_modules():
        module.register_forward_hook(partial(note, name))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        replica(image)
    root = type(replica).__name__
    flops = {name.removeprefix(f"{root}."): sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}

    table = Table(box=box.SIMPLE, title=f"{root}, {resolution} x {resolution} pixels", show_footer=True)
    table.add_column("layer", "total")
    table.add_column("kind")
    table.add_column("output", justify="right")
    table.add_column("parameters", f"{_parameters(replica):,}", justify="right")
    table.add_column("MFLOPs", _millions(flops["Global"]), justify="right")

    def add(name: str, label: str, kind: str, style: str) -> None:
        count, cost = _parameters(replica.get_submodule(name)), flops.get(name, 0)
        table.add_row(label, kind, shapes.get(name, ""), f"{count:,}", _millions(cost), style=style)

    for child, group in replica.named_children():
        add(child, child, _kind(group), "bold")
        for name, module in group.named_modules(prefix=child):
            if name != child and next(module.parameters(recurse=False), None) is not None:
                add(name, "  " + name.removeprefix(child + "."), _kind(module), "")
        table.add_section()
    table.caption = "FLOPs of one image forward; a multiply-add is 2; convolutions and linear layers"
    return table


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {module.kernel_size[0]}x{module.kernel_size[1]}{stride}"
    name = type(module).__name__
    return {"BatchNorm2d": "batch norm", "Linear": "linear", "Sequential": ""}.get(name, name)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _millions(flops: int) -> str:
    return f"{flops / 1e6:,.2f}" if flops else "-"
