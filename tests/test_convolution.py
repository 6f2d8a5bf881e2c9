"""The convolution's own weight gradient against torch's, in the shapes where it is used and where it is not."""

import pytest
import torch
from torch import nn

from engine.convolution import POSITIONS_PER_CHANNEL, Conv2d
from engine.device import autocast


@pytest.mark.parametrize(
    ("kernel_size", "stride", "size"), [(3, 1, 3), (3, 2, 6), (3, 2, 5), (1, 2, 6), (1, 2, 5), (7, 2, 9)]
)
def test_gradients_are_torch_s(kernel_size: int, stride: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 and both memory formats, an odd size with stride 2 among them."""
    monkeypatch.setitem(POSITIONS_PER_CHANNEL, torch.float64, 1000)
    torch.manual_seed(0)
    ours = Conv2d(5, 7, kernel_size, stride, kernel_size // 2).double()
    theirs = nn.Conv2d(5, 7, kernel_size, stride, kernel_size // 2, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(4, 5, size, size, dtype=torch.float64).contiguous(memory_format=memory_format)
        results = []
        for convolution in (ours, theirs):
            x = images.clone(memory_format=torch.preserve_format).requires_grad_()
            y = convolution(x)
            results.append((y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), [x, convolution.weight])))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert type(ours(images).grad_fn).__name__ == "_ConvolveBackward"


def test_used_only_where_it_is_faster() -> None:
    """Few positions for many channels take it; large pictures, and passes without gradients, torch's own."""
    convolution = Conv2d(4, 16, 3, padding=1)
    few, many = torch.randn(2, 4, 8, 8), torch.randn(3, 4, 8, 8)  # 128 and 192 positions for 8 * 16 = 128
    assert type(convolution(few).grad_fn).__name__ == "_ConvolveBackward"
    assert type(convolution(many).grad_fn).__name__ == "ConvolutionBackward0"
    assert convolution(few[:0]).shape == (0, 16, 8, 8)
    with torch.no_grad():
        assert convolution(few).grad_fn is None


def test_under_autocast() -> None:
    """bfloat16 in, as torch's own convolution takes it; the weight's gradient comes back as float32."""
    torch.manual_seed(0)
    convolution = Conv2d(32, 64, 3, padding=1)
    x = torch.randn(8, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x)
        reference = nn.functional.conv2d(x, convolution.weight, None, 1, 1)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, reference)
    g = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(z, convolution.weight, g)[0] for z in (y, reference))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))


@pytest.mark.parametrize("size", [48, 64, 128])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_torch_s_own_gradient_ends_the_process(size: int, precision: str) -> None:
    """oneDNN's weight gradient of few channels, 1x1 with stride 2, writes past its memory."""
    torch.manual_seed(0)
    convolution = Conv2d(8, 16, 1, 2)
    x = torch.randn(8, 8, size, size).contiguous(memory_format=torch.channels_last)
    for _ in range(5):
        with autocast(x.device, precision):
            y = convolution(x)
        (ours,) = torch.autograd.grad(y.double().square().sum(), convolution.weight)
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    exact = (2 * y.detach().double().permute(1, 0, 2, 3).flatten(1)) @ x[:, :, ::2, ::2].double().permute(
        1, 0, 2, 3
    ).flatten(1).T
    atol = tolerance * float(exact.abs().max())
    torch.testing.assert_close(ours[..., 0, 0].double(), exact, rtol=tolerance, atol=atol)
