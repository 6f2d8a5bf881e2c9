"""One frozen dataclass holds a run's every setting; PRESETS are values of it.

    python train.py [full|cpu|pictures|finetune|smoke] --epochs 5 --max-lr 0.8

Every field is a flag. Beside its default stand its bounds, checked before any work starts, and its role: what it
decides. Where none is named it decides the weights, and so may not change on resume.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro

from ground.data import PACKED_FROM, kind_of
from ground.mistake import Mistake

# What a setting decides. On resume those of "data", "machine" and "files" may change.
Role = Literal[
    "weights",  # the weights that come out
    "network",  # the weights, and the graph that is compiled
    "batches",  # the weights, by what a batch holds: the arguments of pipeline.plan.Plan
    "data",  # where the images lie; whether they are the same, their content says
    "machine",  # where it is computed
    "files",  # what is read and written, and when
]
DECIDING: tuple[Role, ...] = ("weights", "network", "batches")
COLDEST, HOTTEST = 0.05, 20.0  # temperature that a model's logits can be divided by
T = TypeVar("T")
C = TypeVar("C", bound="Config")


def setting(default: T, role: Role = "weights", **bounds: float) -> T:
    """A field of Config; the bounds of its number, or of each, are named as in the module operator."""
    made: Any = field(default=default, metadata={"role": role, "bounds": bounds})
    return cast(T, made)


def _words(bounds: Mapping[str, float]) -> str:
    """The bounds as the end of "it must be ..."."""
    if {"ge", "le"} <= bounds.keys():
        return "{ge} to {le}".format_map(bounds)
    words = {"ge": "{} or more", "gt": "above {}", "le": "{} at most", "lt": "below {}"}
    return ", and ".join(words[name].format(bound) for name, bound in bounds.items()).replace("below inf", "finite")


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: int = setting(20, ge=1, le=10_000)
    """Passes over the training set."""
    batch_size: int = setting(512, "batches", ge=2)
    """Images a step, over all processes together."""
    resolutions: tuple[int, ...] = setting((32,), ge=8, le=512)
    """Side of the images in pixels, spread evenly over the epochs; the finished model is for the last one, or with
    pictures of 96 pixels and more for --size, which may be larger."""
    depth: Literal[18, 34] = setting(18, "network")
    """Layers of the ResNet."""
    width: int = setting(64, "network", ge=1, le=1024)
    """Channels of the first stage; 64 is the standard network."""
    stem: Literal["small", "strided", "imagenet"] = setting("small", "network")
    """Before the stages: a 3x3 convolution; one of stride 2, which halves the sides, for images of
    96 pixels and more; or ImageNet's, 7x7 of stride 2 and a max pool, which quarters them."""
    max_lr: float = setting(0.5, gt=0, lt=math.inf)
    """Peak of the OneCycle learning rate, of all but what Muon trains."""
    weight_decay: float = setting(6e-4, ge=0, lt=1)
    """Decay of convolution and linear weights; norms and biases have none."""
    momentum: float = setting(0.9, ge=0, lt=1)
    """Nesterov momentum of SGD."""
    pct_start: float = setting(0.2, gt=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    div_factor: float = setting(5.0, ge=1, lt=math.inf)
    """The learning rate starts at max_lr / div_factor."""
    label_smoothing: float = setting(0.1, ge=0, lt=1)
    """Probability mass that the targets spread evenly over all classes."""
    temperature: float = setting(1.0, ge=COLDEST, le=HOTTEST)
    """Divides the finished model's logits, so that it is as sure as it is right. Where 100 images or more are neither
    trained on nor test images, it is fitted on these instead."""
    muon_lr: float = setting(0.0, ge=0, lt=math.inf)
    """Peak learning rate of Muon for the filters of the stages, relative to their norm (0: SGD for them too)."""
    muon_momentum: float = setting(0.8, ge=0, lt=1)
    """Nesterov momentum of Muon."""
    bias_lr_scale: float = setting(16.0, gt=0, lt=math.inf)
    """Learning rate of all biases, those of norms and of the last layer, in multiples of the other parameters' (1: the
    same)."""
    body_lr_scale: float = setting(1.0, gt=0, le=1)
    """Learning rate of all but the last layer, in multiples of its own: below 1 for a pretrained network."""
    head_first: bool = False
    """With --pretrained, fit the last layer alone to begin with, in seconds; the better of it and the finished network
    on validation pictures is kept."""
    whiten: bool = True
    """Start the stem as a whitening of the training set's 3x3 patches; not with --stem imagenet."""
    dirac: bool = True
    """Start the 3x3 convolutions as pass-throughs."""
    lookahead: bool = True
    """Average the weights every 5 steps with a pull that grows as the learning rate falls."""
    translate: int = setting(4, "batches", ge=0)
    """Random crop: largest shift in pixels of the stored image, padded by reflection (0: none). Below 96 pixels."""
    crop_area: float = setting(0.35, "batches", gt=0, le=1)
    """Random crop of pictures of 96 pixels and more: of so much of the area at least, resized."""
    flip: Literal["random", "alternating", "both", "none"] = setting("alternating", "batches")
    """Mirror images at random, or each image in every second epoch; both: upside down too, for pictures from above."""
    cutout: int = setting(8, "batches", ge=0)
    """Side in pixels, of the stored image, of a square filled with the mean colour (0: none)."""
    pretrained: str = ""
    """Finished checkpoint whose weights, but those of the last layer, the network starts from. Its depth and width are
    taken over; what --whiten and --dirac start is overwritten. Or imagenet: torchvision's weights,
    fetched once; or a file of torchvision's or timm's ResNet-18 or 34, .pth or .safetensors."""
    data: str = setting("cifar10", "data")
    """cifar10; or a folder of pictures, one sub-folder a class, or a CSV file that names some; or generated, small
    images to try the machinery (generated:TRAIN/TEST: so many of them)."""
    size: int = setting(0, ge=0, le=512)
    """Side in pixels of one's own pictures (0: 64, or 32 for small ones). Resolutions, shift, stem and batch size
    follow the pictures unless they are given. Below 96 they are brought to it once; from 96 on they are packed as
    JPEGs, and each epoch decodes other parts of them."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How a picture becomes a square: its middle, all of it out of proportion, or all of it on white."""
    layout: Literal["auto", "classes", "parts"] = "auto"
    """What the folders in a folder of pictures are: classes, or parts that hold classes; auto tells by their names."""
    minutes: float = setting(0.0, ge=0, le=100_000)
    """Choose the epochs, and a smaller width where it must be, so that training takes so long here (0: do not)."""
    balance: bool = False
    """Weigh each image's loss so that all classes count the same, however many images they have."""
    seed: int = setting(0, "batches", ge=0, lt=2**31)
    """Seeds the weights and everything that is drawn."""
    device: Literal["auto", "cuda", "cpu"] = setting("auto", "machine")
    """Where the model trains; auto takes a CUDA GPU where there is one."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of convolutions; auto takes what this hardware is fast at."""
    sync_batch_norm: bool = False
    """With several GPUs, batch norm by the whole batch instead of each GPU's share of it; not with --compile."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on for CUDA, off for a CPU: there it takes a minute a size and gains a fifth at most."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"] = "default"
    """torch.compile's mode; reduce-overhead and max-autotune replay CUDA graphs, the max ones try many kernels."""
    cuda_graph: bool = True
    """On a GPU, in one process, launch each training step as one CUDA graph; not with modes that replay their own."""
    threads: int = setting(0, "machine", ge=0, le=1024)
    """CPU threads for the model and for DALI (0: one per core)."""
    validate: bool = False
    """Hold out a tenth of the training images and report on them; the test set is not opened."""
    fold: str = ""
    """Hold out this fold of the training images instead and report on it: 2/5 is the second of five. See audit.py."""
    out: str = setting("model.pt", "files")
    """The finished checkpoint: weights, config, metrics."""
    run_dir: str = setting("", "files")
    """Folder for the log, TensorBoard, curves and resume state (default: runs/DATE_TIME)."""
    resume: str = setting("", "files")
    """Resume state, or the run folder that holds one, to go on from; auto: go on if there is one, else start."""
    checkpoint_every: float = setting(60.0, "files", ge=0, lt=math.inf)
    """Seconds between resume states inside an epoch, more where saving takes over 1% of the time (0: every step)."""
    deterministic: bool = False
    """On CUDA, only algorithms that repeat bit for bit (a CPU always does)."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise Mistake(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be {rule}")

        for name, kind in get_type_hints(type(self)).items():
            if kind is float:  # 5 is 5.0, also where it is read back
                object.__setattr__(self, name, float(getattr(self, name)))
            if get_origin(kind) is Literal:
                need(getattr(self, name) in get_args(kind), name, "one of " + ", ".join(map(str, get_args(kind))))
        for entry in fields(self):
            value, bounds = getattr(self, entry.name), entry.metadata.get("bounds", {})
            need("\0" not in str(value), entry.name, "without a zero byte")
            for number in value if isinstance(value, tuple) else (value,):
                within = all(getattr(operator, compare)(number, bound) for compare, bound in bounds.items())
                need(within, entry.name, _words(bounds))
        need(self.size == 0 or self.size >= 8, "size", "0, or 8 or more")
        need(len(self.resolutions) >= 1, "resolutions", "one number or more")
        numbers = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", self.fold)
        is_fold = numbers is not None and int(numbers[1]) <= int(numbers[2]) > 1
        need(is_fold or not self.fold, "fold", "such as 2/5, the second of five")
        need(not (self.fold and self.validate), "fold", "alone, without --validate")
        need(bool(self.out), "out", "a file name")
        need(not fnmatch(self.out, "*resume-*.pt"), "out", "another name than a resume state's")
        need(not self.sync_batch_norm or self.compile != "on", "compile", "auto or off with --sync-batch-norm")

    def drawn(self) -> dict[str, Any]:
        """What decides the batches of every epoch, under the names of pipeline.plan.Plan."""
        return self.values("batches")

    def values(self, *roles: Role) -> dict[str, Any]:
        chosen = [f.name for f in fields(Config) if f.metadata.get("role", "weights") in roles]
        return {name: getattr(self, name) for name in chosen}

    @property
    def own_pictures(self) -> bool:
        """Whether `data` is a folder or a CSV file."""
        return kind_of(self.data) == "pictures"

    @property
    def side(self) -> int:
        """Side of the stored images in pixels, from which the resolutions are made."""
        return (self.size or self.resolutions[-1]) if self.own_pictures else 32

    @property
    def packed(self) -> bool:
        """Whether the images are random regions of packed pictures."""
        return self.own_pictures and self.side >= PACKED_FROM

    def reported_side(self, epoch: int) -> int:
        """Side in pixels of the images that are evaluated after an epoch."""
        return self.side if self.packed else self.resolution(epoch)

    @property
    def model_side(self) -> int:
        """Side in pixels that the finished model is for."""
        return self.reported_side(self.epochs)

    def compiles(self, cuda: bool) -> bool:
        """Whether `compile` means yes on a CUDA GPU or on a CPU."""
        return self.compile == "on" or (self.compile == "auto" and cuda and not self.sync_batch_norm)

    def resolution(self, epoch: int) -> int:
        """Side in pixels of an epoch's images; epochs count from 0, and from the last on it stays."""
        epochs_to_come = max(0, self.epochs - 1 - epoch)
        return self.resolutions[-1 - epochs_to_come * len(self.resolutions) // self.epochs]


PICTURES, FINETUNE = "pictures", "finetune"
PRESETS: dict[str, Config] = {
    # 20 epochs of the 11.17 M-parameter network: 95.43% plain (one seed), 21.6 s of training on one H200. At 32 px
    # throughout 94.81% in 13.6 s; with SGD alone, at 16, 24 and 32 px, 93.6%.
    "full": Config(resolutions=(32, 40, 48, 48), max_lr=0.1, muon_lr=0.1, cutout=12, temperature=0.67),
    # Two slow CPU cores with bfloat16: 90.19 +- 0.06% in 8 min 38 s. Chosen on held-out images: docs/RECIPE.md.
    "cpu": Config(
        epochs=5, batch_size=256, resolutions=(16, 24, 24, 32, 32), width=32, translate=2, cutout=0,
        max_lr=0.1, muon_lr=0.1, weight_decay=1e-3,
        temperature=0.68,  # as one training with --validate fitted it
    ),
    # A folder of some thousand pictures in minutes on two CPU cores: python train.py --data FOLDER
    PICTURES: Config(
        minutes=5.0, batch_size=64, resolutions=(32, 32, 48, 48, 64), width=32, translate=6, cutout=0,
        max_lr=0.1, muon_lr=0.1, weight_decay=1e-3,
    ),
    # Photographs from ImageNet's weights: python train.py --data FOLDER --pretrained imagenet
    FINETUNE: Config(
        minutes=2.0, batch_size=64, resolutions=(128,), size=128, stem="imagenet", max_lr=0.02, muon_lr=0.0,
        weight_decay=5e-4, bias_lr_scale=1.0, head_first=True, whiten=False, dirac=False,
        translate=0, cutout=0,
    ),
    # Seconds, no data set.
    "smoke": Config(
        epochs=2, batch_size=64, resolutions=(16, 32), width=8, max_lr=0.1,
        data="generated", run_dir="runs/smoke",
    ),
}  # fmt: skip


def default_preset(cuda: bool) -> str:
    """The preset of `python train.py` without a name."""
    return "full" if cuda else "cpu"


def parse(arguments: Sequence[str], default: str, resumed: Config | None = None) -> tuple[str, Config]:
    """`[PRESET] [--FLAG VALUE ...]` -> the preset's name and the config.

    Without a preset, the flags' defaults are those of `resumed`, else of the preset `default`, or with a folder of
    pictures of theirs. With a preset and `resumed`, they are the preset's in the resumed run's folder: the command
    that started a run may be given again to go on with it. Raises as the two below.
    """
    preset, flags = preset_and_flags(arguments)
    if preset:
        name, base = preset, PRESETS[preset]
        base = replace(base, run_dir=resumed.run_dir) if resumed else base
    else:
        name = "the resumed run's" if resumed else default
        base = resumed or PRESETS[name]
    summary = f"Train ResNet-18 on pictures: python train.py [{'|'.join(PRESETS)}] [flags]. Defaults: {name}."
    config = parse_flags(base, flags, "train.py", summary)
    if config.own_pictures and not preset and not resumed:
        return parse([FINETUNE if config.pretrained == "imagenet" else PICTURES, *flags], default)
    return name, config


def preset_and_flags(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """`[PRESET] [--FLAG VALUE ...]` -> the preset's name or "", and the flags. Raises Mistake."""
    if not arguments or arguments[0].startswith("-"):
        return "", list(arguments)
    preset, *flags = arguments
    if preset not in PRESETS:
        raise Mistake(f"preset {preset!r} is unknown: it must be one of {', '.join(PRESETS)}")
    return preset, flags


def parse_flags(base: C, flags: Sequence[str], program: str, summary: str) -> C:
    """`base` with what the flags change; without its `minutes` where they give the epochs.

    --help calls the command `program` and prints `summary`. Raises Mistake where flags exclude each
    other; SystemExit after --help (0), or after one message on stderr about a flag (2).
    """
    config = tyro.cli(type(base), default=base, args=list(flags), description=summary, prog=program)
    given = given_flags(flags)
    if {"epochs", "minutes"} <= given:
        raise Mistake("--epochs and --minutes: give one of them, the other follows")
    if config.stem == "imagenet":
        if config.whiten and "whiten" in given:
            raise Mistake("--whiten is for stems of 3x3: leave it out, or choose another --stem")
        config = replace(config, whiten=False)
    return replace(config, minutes=0.0) if "epochs" in given else config


def given_flags(arguments: Sequence[str]) -> set[str]:
    """Names of the settings that a command line gives."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}


def differences(old: Config, new: Config, *roles: Role) -> list[str]:
    """Settings of these roles, by default those that decide the weights, that differ: "--flag OLD -> NEW"."""
    before, after = (config.values(*roles or DECIDING) for config in (old, new))
    differing = [name for name in before if before[name] != after[name]]
    return [f"--{name.replace('_', '-')} {before[name]} -> {after[name]}" for name in differing]
