"""A model's layers in order, which train.py prints: output shapes, parameters, forward FLOPs an image.

FLOPs are counted as engine/cost.py says. torch's own table of them has neither shapes nor parameters.
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

    def numbers(name: str, module: nn.Module) -> tuple[str, str]:
        cost = flops.get(name, 0)
        return f"{sum(p.numel() for p in module.parameters()):,}", f"{cost / 1e6:,.2f}" if cost else "-"

    table = Table(box=box.SIMPLE, title=f"{root}, {resolution} x {resolution} pixels", show_footer=True)
    table.add_column("layer", "total")
    table.add_column("kind")
    for header, footer in zip(("output", "parameters", "MFLOPs"), ("", *numbers("Global", replica)), strict=True):
        table.add_column(header, footer, justify="right")
    for child, group in replica.named_children():
        for name, module in group.named_modules(prefix=child):
            if name == child or next(module.parameters(recurse=False), None) is not None:
                label, style = (child, "bold") if name == child else ("  " + name.removeprefix(child + "."), "")
                table.add_row(label, _kind(module), shapes.get(name, ""), *numbers(name, module), style=style)
        table.add_section()
    table.caption = "FLOPs of one image forward; a multiply-add is 2; convolutions and linear layers"
    return table


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {module.kernel_size[0]}x{module.kernel_size[1]}{stride}"
    name = type(module).__name__
    return {"BatchNorm2d": "batch norm", "Linear": "linear", "Sequential": ""}.get(name, name)
