"""A convolution whose weight gradient is one matrix product where that is faster: late stages, on a CPU.

oneDNN's own loses most of a CPU's matrix rate where the picture is small and the channels are many. Measured with
bfloat16 on 2 cores with AMX, batch 256: 256 channels on 2x2 pixels 11.4 ms against 1.3, 128 on 4x4 4.6 against 2.0,
64 on 8x8 2.5 against 4.7. A training step of width 32 at 16 pixels takes two thirds of the time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Output positions (batch * height * width) an output channel up to which the product wins, measured.
POSITIONS_PER_CHANNEL = {torch.bfloat16: 80, torch.float32: 8}


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` without bias: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    as_product = True
    """Take the product where it is faster; else it is `nn.Conv2d` in all."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(in_channels, channels, kernel_size, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.as_product or x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        stride, padding = int(self.stride[0]), int(self.padding[0])
        positions = x.shape[0] * (x.shape[2] // stride) * (x.shape[3] // stride)
        # oneDNN writes past its memory here (torch 2.11 and 2.15): 2 to 12 channels of more than 48 pixels, stride 2.
        corrupts = self.kernel_size == (1, 1) and stride == 2 and self.in_channels < 16 and x.shape[2] > 32
        if not corrupts and not 0 < positions <= POSITIONS_PER_CHANNEL.get(dtype, 0) * self.out_channels:
            return super().forward(x)
        return _Convolve.apply(x.to(dtype), self.weight.to(dtype), stride, padding)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            pair, none, mask = [ctx.stride] * 2, [0, 0], [True, False, False]
            for_x = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, pair, [ctx.padding] * 2, [1, 1], False, none, 1, mask
            )[0]
        if ctx.needs_input_grad[1]:
            for_weight = weight_gradient(x, gradient, weight.shape[2], ctx.stride, ctx.padding)
        return for_x, for_weight, None, None


def use_torch_gradients(model: nn.Module) -> None:
    """Make a model's convolutions `nn.Conv2d` in all, to count or to compare."""
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.as_product = False


def weight_gradient(x: Tensor, gradient: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """Gradient (out, in, k, k) of a convolution's weight, from its input (N, in, H, W) and its output's."""
    n, channels, height, width = gradient.shape
    nhwc = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    by_image, by_row, by_column, by_channel = nhwc.stride()
    patches = nhwc.as_strided(
        (n, height, width, kernel_size, kernel_size, x.shape[1]),
        (by_image, by_row * stride, by_column * stride, by_row, by_column, by_channel),
    )
    columns = patches.reshape(n * height * width, -1)
    product = gradient.permute(0, 2, 3, 1).reshape(-1, channels).T @ columns
    return product.view(channels, kernel_size, kernel_size, x.shape[1]).permute(0, 3, 1, 2)
