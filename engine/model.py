"""ResNet-18 (or 34) for 32x32 images: `forward(images) = head(features(images))`, stages reachable by name.

He et al. 2015 (arXiv 1512.03385) with the usual CIFAR stem: one 3x3 convolution, no max-pool. Width 64 and depth 18
have 11,173,962 parameters; with the stem "imagenet" they are torchvision's network. Images come in
as uint8; normalising is the model's first operation, so a checkpoint can be given any uint8 picture
and the data pipeline moves a quarter of the bytes.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import Config
from engine.convolution import Conv2d
from ground.mistake import Mistake

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
STEMS = {"small": (3, 1), "strided": (3, 2), "imagenet": (7, 2)}  # side and stride
WHITENING_IMAGES = 5_000
SAMPLE_PIXELS = 46_080_000  # of images that stand for all, at most: 5,000 at 96 px, 918 at 224
WHITENING_PIXELS = 5_120_000  # at a time, which takes 0.7 GB for a moment: all those images at 32 px
MOST_CLASSES, LONGEST_NAME, LONGEST_NAMES = 100_000, 1000, 1_000_000  # the last: all names together
Channels = Sequence[float]


class Images(Protocol):
    """What must be known of the images to train on; pipeline.split.Split knows it."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def statistics(self) -> tuple[Channels, Channels]: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def side(self) -> int: ...
    def __len__(self) -> int: ...
    def sample(self, count: int) -> np.ndarray: ...


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that does not count its batches: one kernel less a layer and step. Nothing reads the count."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance, momentum = self.running_mean, self.running_var, self.momentum or 0.0
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, momentum, self.eps)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, stride, padding=1)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.bn2 = BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(Conv2d(in_channels, channels, 1, stride), BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet for small images; it knows the names of its classes and how its images are normalised.

    Args:
        classes: name of each class, in the order of the logits.
        width: channels of the stem and of layer1; the later stages have 2, 4 and 8 times as many.
        resolution: side in pixels that the weights are meant for; `predict` resizes to it.
        mean, std: of each channel of the training images, in 0..1; kept among the weights, as buffers.
        stem: one of STEMS; "strided" makes the activations of all stages half as wide and high,
            "imagenet", which has a max pool too, a quarter.

    Raises ValueError for another depth than 18 and 34, another stem, no width, no classes, or
    names that no checkpoint holds.
    """

    mean: Tensor
    std: Tensor
    loss_weights: Tensor | None
    """(C,) float32: what an image of each class counts in training, 1 on average; None: all the same."""
    origin = ""
    """Which weights of another program it started from, and the licence stated for them."""

    def __init__(
        self, classes: Sequence[str], depth: int = 18, width: int = 64, resolution: int = 32,
        mean: Channels = (0.5, 0.5, 0.5), std: Channels = (0.25, 0.25, 0.25), stem: str = "small",
    ) -> None:  # fmt: skip
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth is {depth}: it must be one of {', '.join(map(str, BLOCKS))}")
        if stem not in STEMS:
            raise ValueError(f"stem is {stem!r}: it must be one of {', '.join(STEMS)}")
        if width < 1 or not classes:
            raise ValueError(f"width is {width} and the classes are {len(classes)}: both must be at least 1")
        check_names(classes)
        self.classes, self.depth, self.width, self.resolution = tuple(classes), depth, width, resolution
        self.register_buffer("mean", torch.tensor(mean).mul(255).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).mul(255).view(1, 3, 1, 1))
        self.register_buffer("loss_weights", None, persistent=False)  # of one training: no checkpoint holds it
        side, stride = STEMS[stem]
        convolution = Conv2d(3, width, side, stride, padding=side // 2)
        self.stem = nn.Sequential(convolution, BatchNorm2d(width), nn.ReLU(inplace=True))
        if stem == "imagenet":
            self.stem.append(nn.MaxPool2d(3, 2, padding=1))
        in_channels = width
        for i, blocks in enumerate(BLOCKS[depth]):
            channels = width << i
            strides = [1 if i == 0 else 2] + [1] * (blocks - 1)
            stage = nn.Sequential()
            for stride in strides:
                stage.append(Block(in_channels, channels, stride))
                in_channels = channels
            self.add_module(f"layer{i + 1}", stage)
        self.fc = nn.Linear(in_channels, len(classes))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) in 0..255 -> float32 of the training set's mean 0 and deviation 1."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def features(self, images: Tensor, stage: str = "layer4") -> Tensor:
        """Activations of `stage`, (N, K, h, w) in the autocast type, of uint8 images (N, 3, H, W)."""
        return self._run(self.normalise(images), 0, _position(stage) + 1)

    def from_stage(self, activations: Tensor, stage: str) -> Tensor:
        """Logits of the activations that `features(images, stage)` gave."""
        return self.head(self._run(activations, _position(stage) + 1, len(STAGES)))

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, C) float32 of layer4's activations, outside autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.fc(features.to(self.fc.weight.dtype).mean((2, 3)))

    @torch.no_grad()
    def cool_(self, temperature: float) -> None:
        """Divide all logits by `temperature`, in the weights of the last layer."""
        self.fc.weight.div_(temperature)
        self.fc.bias.div_(temperature)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) float32 of uint8 images (N, 3, H, W)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities (N, C) float32 of uint8 images (N, H, W, 3), of any size, on any device.

        The images are resized (bilinear, antialiased) to the resolution that the weights were trained for. The
        model is used as it is: call `eval()` first, as `load_model` does.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"predict takes uint8 images (N, H, W, 3): got {images.dtype} {tuple(images.shape)}")
        nchw = resize(images.to(self.mean.device).permute(0, 3, 1, 2), self.resolution)
        return self(nchw).softmax(1)

    def _run(self, x: Tensor, start: int, stop: int) -> Tensor:
        for name in STAGES[start:stop]:
            x = self.get_submodule(name)(x)
        return x


def check_names(classes: Sequence[str]) -> None:
    """Raises Mistake unless a checkpoint can hold these names of classes."""
    for name in classes:
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise Mistake(
                f"the class {name[:40]!r}... has {len(name)} characters: name it with 1 to {LONGEST_NAME} that can be "
                "printed"
            )
    characters = sum(map(len, classes))
    if len(classes) > MOST_CLASSES or characters > LONGEST_NAMES:
        raise Mistake(
            f"there are {len(classes)} classes, with {characters} characters in their names: a model has at most "
            f"{MOST_CLASSES} and {LONGEST_NAMES}"
        )


def _position(stage: str) -> int:
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is unknown: it must be one of {', '.join(STAGES)}")
    return STAGES.index(stage)


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 images (N, 3, H, W) -> (N, 3, resolution, resolution), bilinear, antialiased; or as they are."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    resized = F.interpolate(images.float(), (resolution, resolution), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def network(config: Config, classes: Sequence[str], *statistics: Channels) -> ResNet:
    """The config's network with random weights; `statistics` are ResNet's mean and std."""
    mean, std = statistics or ((0.5,) * 3, (0.25,) * 3)
    return ResNet(classes, config.depth, config.width, config.model_side, mean, std, config.stem)


def create(config: Config, train: Images) -> ResNet:
    """The model for the images that it will be trained on, with its starting weights.

    The weights are a function of `config.seed` and, if the stem whitens, of a sample of the images.
    """
    torch.manual_seed(config.seed)
    model = network(config, train.classes, *train.statistics)
    if config.balance:
        counts = np.bincount(train.labels, minlength=len(train.classes)).clip(1)
        model.loss_weights = torch.tensor(len(train.labels) / (len(counts) * counts), dtype=torch.float32)
    if config.dirac:
        dirac_(model)
    if config.whiten and config.stem != "imagenet":
        count = min(WHITENING_IMAGES, SAMPLE_PIXELS // train.side**2)
        sample = torch.from_numpy(train.sample(count).copy()).permute(0, 3, 1, 2)
        whiten_stem_(model, resize(sample, config.resolutions[0]))
    return model


@torch.no_grad()
def whiten_stem_(model: ResNet, images: Tensor, eps: float = 5e-4) -> None:
    """Start the stem as a whitening of 3x3 patches of `images`, uint8 (N, 3, H, W), and their negatives.

    The 27 eigenvectors of the patches' covariance, each over the root of its eigenvalue (plus `eps`), then
    their negatives, fill up to 54 filters in order of falling eigenvalue; other filters keep their random
    start. All stay trainable. Idea: Keller Jordan, arXiv 2404.00498.
    """
    products, count = torch.zeros(27, 27, dtype=torch.float64, device=images.device), 0
    for some in images.split(max(1, WHITENING_PIXELS // images[0, 0].numel())):
        patches = F.unfold(model.normalise(some), 3)[:, :, ::4].transpose(1, 2).reshape(-1, 27).double()
        products, count = products + patches.T @ patches, count + len(patches)
    values, vectors = torch.linalg.eigh(products / count)
    filters = (vectors / (values + eps).sqrt()).T.flip(0).reshape(27, 3, 3, 3).float()
    weight = model.get_submodule("stem.0").get_parameter("weight")
    pairs = min(27, len(weight) // 2)
    weight[: 2 * pairs] = torch.cat([filters[:pairs], -filters[:pairs]]).to(weight)


@torch.no_grad()
def dirac_(model: ResNet) -> None:
    """Start every 3x3 convolution of the stages as a pass-through of its input (Keller Jordan, arXiv 2404.00498).

    Filters beyond the input's channels keep their random start.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and name != "stem.0":
            nn.init.dirac_(module.weight[: module.in_channels])


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], ...]:
    """Four lists: the stages' filters, the stem's and the head's weights, norms' weights, all biases."""
    groups: tuple[list[nn.Parameter], ...] = ([], [], [], [])
    filters, weights, gains, biases = groups
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            (gains if name.endswith("weight") else biases).append(parameter)
        else:
            (weights if name.startswith(("stem", "fc")) else filters).append(parameter)
    return groups
