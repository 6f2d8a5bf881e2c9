"""FLOPs of one training image, counted from the operators that really run.

They are those of convolutions and matrix products, a multiply-add being 2; without norms, activations and pooling,
which are 0.2% of this network.
"""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.convolution import use_torch_gradients


def training_flops(model: nn.Module, resolution: int) -> int:
    """FLOPs of the forward and backward pass of one image."""
    image, replica = one_image_and_copy(model, resolution)
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():
        replica(image).sum().backward()
    return counter.get_total_flops()


def one_image_and_copy(model: nn.Module, resolution: int) -> tuple[Tensor, nn.Module]:
    """One black uint8 image (1, 3, R, R) and a copy of the model on the CPU, in eval mode so that one will do.
    Not on the meta device, which would compute nothing: torch.autocast refuses it."""
    image = torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8, device="cpu")
    replica = copy.deepcopy(model).cpu().eval()
    use_torch_gradients(replica)  # what is counted is the convolution, whatever computes it
    return image, replica
