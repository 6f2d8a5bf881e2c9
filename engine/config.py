"""One frozen dataclass holds a run's every setting; PRESETS are values of it.

    python train.py [full|cpu|smoke] --epochs 5 --max-lr 0.8

Every field is a flag. Ranges are checked before any work starts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: int = 20
    """Passes over the training set."""
    batch_size: int = 512
    """Images a step, over all processes together."""
    resolutions: tuple[int, ...] = (32,)
    """Side of the images in pixels, spread evenly over the epochs; each epoch is evaluated at its own, the model at
    the last one."""
    depth: Literal[18, 34] = 18
    """Layers of the ResNet."""
    width: int = 64
    """Channels of the first stage; 64 is the standard network."""
    max_lr: float = 0.5
    """Peak of the OneCycle learning rate."""
    weight_decay: float = 6e-4
    """Decay of convolution and linear weights; norms and biases have none."""
    momentum: float = 0.9
    """Nesterov momentum of SGD."""
    pct_start: float = 0.2
    """Share of the steps in which the learning rate rises."""
    div_factor: float = 5.0
    """The learning rate starts at max_lr / div_factor."""
    label_smoothing: float = 0.1
    """Probability mass that the targets spread evenly over all classes."""
    muon_lr: float = 0.0
    """Peak learning rate of Muon for the filters of the stages, relative to their norm (0: SGD for them too)."""
    muon_momentum: float = 0.8
    """Nesterov momentum of Muon."""
    bias_lr_scale: float = 16.0
    """Learning rate of norm biases, in multiples of the other parameters' (1: the same)."""
    whiten: bool = True
    """Start the stem as a whitening of the training set's 3x3 patches."""
    dirac: bool = True
    """Start the 3x3 convolutions as pass-throughs."""
    lookahead: bool = True
    """Average the weights every 5 steps with a pull that grows as the learning rate falls."""
    translate: int = 4
    """Random crop: largest shift in pixels of the 32-pixel image, padded by reflection (0: none)."""
    flip: Literal["random", "alternating", "none"] = "alternating"
    """Mirror images at random, or each image in every second epoch."""
    cutout: int = 8
    """Side in pixels of the 32-pixel image of a square painted black (0: none)."""
    seed: int = 0
    """Seeds the weights and everything that is drawn."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the model trains; auto takes a CUDA GPU where there is one."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of convolutions; auto takes what this hardware is fast at."""
    sync_batch_norm: bool = False
    """With several GPUs, batch norm by the whole batch instead of each GPU's share of it; not with --compile."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on for CUDA, off for a CPU: there it takes a minute a resolution and gains a fifth."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"] = "default"
    """torch.compile's mode; reduce-overhead and max-autotune replay CUDA graphs, the max ones try many kernels."""
    cuda_graph: bool = True
    """On a GPU, in one process, launch each training step as one CUDA graph; not with modes that replay their own."""
    threads: int = 0
    """CPU threads for the model and for DALI (0: one per core)."""
    validate: bool = False
    """Hold out the last 5,000 training images and report on them; the test set is not opened."""
    generated: bool = False
    """Train on small generated images instead of CIFAR-10, to try the machinery."""
    out: str = "model.pt"
    """The finished checkpoint: weights, config, metrics."""
    run_dir: str = ""
    """Folder for the log, TensorBoard, curves and resume state (default: runs/DATE_TIME)."""
    resume: str = ""
    """Resume state, or the run folder that holds one, to go on from; auto: go on if there is one, else start."""
    checkpoint_every: float = 60.0
    """Seconds between resume states inside an epoch, more where saving takes over 1% of the time (0: every step)."""
    deterministic: bool = False
    """On CUDA, only algorithms that repeat bit for bit (a CPU always does)."""

    def __post_init__(self) -> None:
        def need(ok: bool, field: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"--{field.replace('_', '-')} is {getattr(self, field)}: it must be {rule}")

        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                need(getattr(self, name) in get_args(kind), name, "one of " + ", ".join(map(str, get_args(kind))))
        need(1 <= self.epochs <= 10_000, "epochs", "1 to 10000")
        need(2 <= self.batch_size <= 50_000, "batch_size", "2 to 50000, and no larger than the training set")
        need(len(self.resolutions) >= 1, "resolutions", "one number or more")
        need(all(8 <= r <= 256 for r in self.resolutions), "resolutions", "8 to 256 pixels each")
        need(1 <= self.width <= 1024, "width", "1 to 1024")
        need(0 < self.max_lr < math.inf, "max_lr", "a positive number")
        need(0 <= self.weight_decay < 1, "weight_decay", "0 or more, and below 1")
        need(0 <= self.momentum < 1, "momentum", "0 or more, and below 1")
        need(0 <= self.muon_lr < math.inf, "muon_lr", "0 or a positive number")
        need(0 <= self.muon_momentum < 1, "muon_momentum", "0 or more, and below 1")
        need(0 < self.pct_start < 1, "pct_start", "between 0 and 1")
        need(1 <= self.div_factor < math.inf, "div_factor", "1 or more")
        need(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more, and below 1")
        need(0 < self.bias_lr_scale < math.inf, "bias_lr_scale", "a positive number")
        need(0 <= self.translate <= 16, "translate", "0 to 16 pixels")
        need(0 <= self.cutout <= 32, "cutout", "0 to 32 pixels")
        need(0 <= self.seed < 2**31, "seed", "0 to 2147483647")
        need(0 <= self.threads <= 1024, "threads", "0 (one per core) to 1024")
        need(bool(self.out), "out", "a file name")
        need(not self.sync_batch_norm or self.compile != "on", "compile", "auto or off with --sync-batch-norm")
        need(0 <= self.checkpoint_every < math.inf, "checkpoint_every", "0 (every step) or more seconds")

    def drawn(self) -> dict[str, Any]:
        """What decides the batches of every epoch, under the names of pipeline.plan.Plan."""
        return {name: getattr(self, name) for name in ("batch_size", "seed", "translate", "flip", "cutout")}

    def compiles(self, cuda: bool) -> bool:
        """Whether `compile` means yes on a CUDA GPU or on a CPU."""
        return self.compile == "on" or (self.compile == "auto" and cuda and not self.sync_batch_norm)

    def resolution(self, epoch: int) -> int:
        """Side in pixels of the images of an epoch, counted from 0: from the last epoch on, the last one."""
        epochs_to_come = max(0, self.epochs - 1 - epoch)
        return self.resolutions[-1 - epochs_to_come * len(self.resolutions) // self.epochs]


PRESETS: dict[str, Config] = {
    # 20 epochs of the 11.17 M-parameter network: 94.7% plain with --resolutions 16 24 32 32 32 on a CPU, one seed, and
    # 93.6% with SGD alone. The target, 95.0% on one H200 in about 10 s, is not measured.
    "full": Config(max_lr=0.2, muon_lr=0.1),
    # Two CPU cores with bfloat16, in under six minutes. Chosen on the held-out 5,000 training images: see the README.
    "cpu": Config(
        epochs=7,
        batch_size=256,
        resolutions=(16, 16, 16, 24, 24, 28, 28),
        width=32,
        max_lr=0.1,
        muon_lr=0.1,
        muon_momentum=0.8,
        weight_decay=1e-3,
        translate=2,
        cutout=0,
    ),
    # Seconds, no data set.
    "smoke": Config(
        epochs=2, batch_size=64, resolutions=(16, 32), width=8, max_lr=0.1, generated=True, run_dir="runs/smoke"
    ),
}


def default_preset(cuda: bool) -> str:
    """The preset of `python train.py` without a name."""
    return "full" if cuda else "cpu"


def parse(arguments: Sequence[str], default: str, resumed: Config | None = None) -> tuple[str, Config]:
    """`[PRESET] [--FLAG VALUE ...]` -> the preset's name and the config.

    Without a preset, the flags' defaults are those of `resumed`, or else of the preset `default`. With both, they are
    the preset's in the resumed run's folder: the command that started a run may be given again to go on with it.

    Prints help, or one message on stderr about what is wrong, and raises SystemExit (0 or 2) as command lines do.
    """
    if arguments and not arguments[0].startswith("-"):
        name, arguments = arguments[0], arguments[1:]
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown: it must be one of {', '.join(PRESETS)}")
        base = replace(PRESETS[name], run_dir=resumed.run_dir) if resumed else PRESETS[name]
    else:
        name = "the resumed run's" if resumed else default
        base = resumed or PRESETS[name]
    summary = f"Train ResNet-18 on CIFAR-10: python train.py [{'|'.join(PRESETS)}] [flags]. Defaults: {name}."
    return name, tyro.cli(Config, default=base, args=list(arguments), description=summary, prog="train.py")


def differences(old: Config, new: Config) -> list[str]:
    """Fields that decide a run's weights and differ, as "--field OLD -> NEW"."""
    free = ("out", "run_dir", "resume", "device", "threads", "checkpoint_every")
    return [
        f"--{f.name.replace('_', '-')} {getattr(old, f.name)} -> {getattr(new, f.name)}"
        for f in fields(Config)
        if f.name not in free and getattr(old, f.name) != getattr(new, f.name)
    ]
