"""Class-activation heatmaps of our ResNet, and of any other network of images: the mathematics, no plotting.

    maps = heatmaps(model, images, targets, layer="layer3")      # raw and signed, (N, h, w)
    shown, empty = display(maps, 32)                             # (N, 32, 32) in [0, 1], and which show nothing

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weighs each channel of a stage by the mean of the target logit's
gradient; HiResCAM (Draelos and Carin 2020, arXiv 2011.08891) multiplies gradient and activation element by element.
Logits, not probabilities: at a logit gap of 30 the softmax has a gradient of exactly 0 in float32.
At the last stage both are `class_maps`: no backward pass, and map plus bias sum to the logit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model import STAGES, ResNet, resize
from ground.mistake import Mistake

METHODS = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM"}


def heatmaps(
    model: nn.Module, images: Tensor, targets: Tensor,
    layer: str = "layer4", method: str = "gradcam", batch_size: int = 250,
) -> Tensor:
    """Raw, signed heatmaps (N, h, w) float32 (float64 of a float64 model), on the model's device.

    Runs in eval mode, under the autocast around the call. The model is left as it was; it may be
    frozen, compiled or wrapped (DataParallel); an outer `no_grad` or `inference_mode` is fine.

    Args:
        model: ResNet, or any module that makes logits (N, C) of images.
        images: (N, 3, H, W) uint8, of any size; for another module as it was trained.
        targets: (N,) integers, the class whose logit is explained; or (N, T), which gives maps (N, T, h, w) for little
            more than the cost of one: the forward pass is shared.
        layer: one of STAGES; for another module the name of one of its modules, as `get_submodule` takes it, that runs
            once and gives (N, K, h, w): "layer4" or "layer4.1.conv2" of torchvision's ResNets.
        method: one of METHODS; they agree at layer4.

    Raises:
        Mistake: unknown layer, method or class, a layer without maps, or targets of another number.
    """
    net = _inner(model)
    known = STAGES if isinstance(net, ResNet) else [name for name, _ in net.named_modules() if name]
    if layer not in known:
        near = known if known is STAGES else get_close_matches(layer, known) or dict(net.named_children())
        raise Mistake(f"layer {layer!r} is unknown: it must be one of {', '.join(near)}")
    if method not in METHODS:
        raise Mistake(f"method {method!r} is unknown: it must be one of {', '.join(METHODS)}")
    device, parts = next(net.parameters()).device, []
    with evaluating(net), torch.inference_mode(False):
        classes = _checked(targets, len(images))
        low, high = (int(classes.min()), int(classes.max())) if classes.numel() else (0, 0)
        for some, wanted in zip(images.split(batch_size), classes.to(device).split(batch_size), strict=True):
            some = some.to(device)
            if isinstance(net, ResNet) and some.dtype == torch.uint8:
                some = resize(some, net.resolution)
            activations, logits = _cut(net, some, layer)
            if not 0 <= low <= high < logits.shape[1]:
                raise Mistake(f"targets run from {low} to {high}: they must be 0 to {logits.shape[1] - 1}")
            parts.append(_maps(activations, logits, wanted, method))
    maps = torch.cat(parts)
    return maps if targets.ndim == 2 else maps[:, 0]


def class_maps(features: Tensor, head: nn.Linear) -> Tensor:
    """Raw maps of all classes (N, C, h, w), float32, of the last stage's activations (N, K, h, w): W[c] . A / (h w).

    The gradient of logit c by a pooled channel is W[c] / (h w) everywhere: both methods at once.
    """
    # CUDA may round float32 products to TF32 (1e-3); a CPU does not, so there float64 would only take longer.
    exact = torch.float64 if features.is_cuda else head.weight.dtype
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        maps = torch.einsum("nkhw,ck->nchw", features.to(exact), head.weight.to(exact))
        return (maps / (features.shape[-2] * features.shape[-1])).to(head.weight.dtype)


def check_class_maps(net: ResNet, images: Tensor) -> float:
    """`class_maps` minus autograd's, over the largest value; images (N, 3, R, R) uint8.

    Raises Mistake above 0.005 (TF32 alone costs 0.001): no pool and linear layer end the network.
    """
    if not len(images):
        return 0.0
    with evaluating(net), torch.no_grad():
        analytic = class_maps(net.features(images.to(net.mean.device)), net.fc)
    every = torch.arange(net.fc.out_features).expand(len(images), -1)
    difference = float((heatmaps(net, images, every) - analytic).abs().max() / analytic.abs().max().clamp_min(1e-30))
    if not difference <= 5e-3:
        raise Mistake(f"the last stage's maps differ from autograd's by {difference:.1e} of their largest value")
    return difference


def display(maps: Tensor, size: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Maps to look at, (N, size, size) float32 in [0, 1], and (N,) bool: True where there is no positive evidence.

    Raw maps (N, h, w) lose their negative part, are enlarged and divided by their own maximum.
    Min-max scaling would hide evidence: of a small ResNet-18, 61% of the predicted class's layer4
    maps are positive everywhere.
    `signed`, for margins, keeps both signs: [-1, 1] by the largest absolute value, True where the map is 0 everywhere.
    Raises Mistake where a value is not finite.
    """
    if not maps.isfinite().all():
        raise Mistake("a heatmap has values that are not finite")
    unit = _over_peak(maps if signed else maps.relu()).float()  # before enlarging: no raw value over- or underflows
    enlarged = F.interpolate(unit[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    return _over_peak(enlarged), (unit == 0).flatten(1).all(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module has its own flag back, also after an exception."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _inner(model: nn.Module) -> nn.Module:
    """What torch.compile's or a data-parallel wrapper holds; else the model itself."""
    children = dict(model.named_children())
    return _inner(*children.values()) if children.keys() in ({"_orig_mod"}, {"module"}) else model


def _cut(net: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Activations of `layer`, (N, K, h, w), as a leaf, and the logits (N, C) that follow from them."""
    if isinstance(net, ResNet):
        with torch.no_grad():
            leaf = net.features(images, layer).detach().requires_grad_()
        with torch.enable_grad():
            return leaf, net.from_stage(leaf, layer)
    leaves: list[Tensor] = []

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4 or leaves:
            raise Mistake(f"layer {layer!r} gives no maps: it must run once and give (N, K, h, w)")
        leaves.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)  # from here on, until no_grad's block ends
        return leaves[-1].clone()  # which the network may overwrite

    hook = net.get_submodule(layer).register_forward_hook(cut)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # what is compiled does not see a new hook
            logits = net(images)
    finally:
        hook.remove()
    if not leaves:
        raise Mistake(f"layer {layer!r} gives no maps: the network does not run it")
    return leaves[0], logits


def _maps(activations: Tensor, logits: Tensor, classes: Tensor, method: str) -> Tensor:
    """Maps (N, T, h, w) of classes (N, T)."""
    exact = torch.promote_types(activations.dtype, torch.float32)
    values, maps = activations.detach().to(exact), []
    with torch.enable_grad():
        chosen = logits.gather(1, classes)
    for logit in chosen.unbind(1):
        gradient = torch.autograd.grad(logit.sum(), activations, retain_graph=True)[0].to(exact)
        weights = gradient.mean((2, 3), keepdim=True) if method == "gradcam" else gradient
        maps.append((weights * values).sum(1))
    return torch.stack(maps, 1)


def _checked(targets: Tensor, count: int) -> Tensor:
    """Targets as a new tensor (N, T) int64: one that was made under inference_mode could not take part in autograd."""
    if targets.ndim not in (1, 2) or len(targets) != count:
        shape = tuple(targets.shape)
        raise Mistake(f"targets have the shape {shape}: {count} images need ({count},) or ({count}, T)")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise Mistake(f"targets are {targets.dtype}: they must be integers")
    columns = targets.to(torch.int64, copy=True)
    return columns if targets.ndim == 2 else columns[:, None]


def _over_peak(maps: Tensor) -> Tensor:
    peak = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(peak > 0, peak, 1)
