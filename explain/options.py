"""What `python gradcam.py` can be asked for: every field is a flag, checked before any work starts.

Imports nothing heavy, so that `--help` and mistakes are answered at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ground.mistake import Mistake

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint
    from pipeline.dataset import DataSet

ORDERS = {
    "loss": "largest loss first",
    "confidence": "most confident first",
    "index": "in their own order",
    "random": "drawn at random (seed {seed})",
}
# What these flags take beside a class's name; a word is never a class, even if one is named so.
WORDS = {"true": ("any",), "pred": ("any",), "target": ("pred", "true", "margin")}


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Flags of every command that reads a checkpoint."""

    ckpt: str = "model.pt"
    """Checkpoint that train.py wrote."""
    data: str = ""
    """Where the data set that it was trained on lies now, if not where it was; the contents must be the same."""
    threads: int = 0
    """CPU threads (0: one per core)."""

    def __post_init__(self) -> None:
        self._require_within("threads", 0, 1024)

    def _require_within(self, name: str, low: int, high: int) -> None:
        if not low <= getattr(self, name) <= high:
            raise Mistake(f"--{name} is {getattr(self, name)}: it must be {low} to {high}")

    def load(self) -> "Checkpoint":
        """The checkpoint. Raises as `engine.checkpoint.load`, and Mistake where there is none."""
        from engine import checkpoint

        if not Path(self.ckpt).exists():
            raise Mistake(f"{self.ckpt}: no such checkpoint: `make train` makes model.pt, --ckpt names another")
        return checkpoint.load(self.ckpt)

    def open_data(self, checkpoint: "Checkpoint") -> "DataSet":
        """The checkpoint's data. Raises Mistake for other contents, or a folder that it alone names."""
        from pipeline.dataset import open_dataset, require_known

        config, identity = checkpoint.config, checkpoint.metrics.get("identity", "")
        if not self.data:
            require_known(config.data, self.ckpt)
        data = open_dataset(self.data or config.data, config.size, config.fit, config.layout)
        if self.data and identity and data.identity() != identity:
            raise Mistake(f"--data is {self.data}: these are not the pictures of {self.ckpt}, in its classes and parts")
        return data


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CheckpointOptions):
    """Flags of every command that runs the checkpoint's model."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the model runs; auto takes a CUDA GPU where there is one."""
    precision: Literal["checkpoint", "bf16", "fp16", "fp32"] = "checkpoint"
    """Type of convolutions; by default the one that the checkpoint was evaluated in."""


@dataclass(frozen=True, kw_only=True)
class GradcamOptions(ModelOptions):
    out: str = "gallery.png"
    """The picture (.png) or the page (.html); errors.csv and heatmaps.npz go into its folder."""
    images: tuple[str, ...] = ()
    """Explain these pictures, and those in these folders, instead of the errors; by confidence, without true classes.
    Beside --out come images.csv and images.npz."""
    neighbours: bool = False
    """Show on the page the five training images that the model finds most like each error; it takes
    a pass over 20,000 of them at most."""
    faithfulness: bool = False
    """Check also whether the maps point at what the model used; a page shows the result."""
    n: int = 10
    """Errors to draw, 1 to 200; the page, the table and the heatmaps always hold all."""
    sort: Literal["loss", "confidence", "index", "random"] = "loss"
    """Which errors come first."""
    seed: int = 0
    """What --sort random and --faithfulness draw by."""
    true: str = "any"
    """Draw only errors of this true class, one that the checkpoint knows; any: of all, even if a class is named so."""
    pred: str = "any"
    """Draw only errors of this predicted class; any: of all."""
    layer: Literal["stem", "layer1", "layer2", "layer3", "layer4"] = "layer4"
    """Stage whose activations are weighed: later ones know more, earlier ones see finer."""
    method: Literal["gradcam", "hirescam"] = "gradcam"
    """How they are weighed; both agree at layer4."""
    target: str = "pred"
    """What is drawn first and stored as `maps`: the predicted class (pred), the true one (true), predicted minus true
    (margin), or a class by its name. The three words mean this even if a class is named so: choose
    that one on the page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_within("n", 1, 200)
        self._require_within("seed", 0, 2**31 - 1)
        if Path(self.out).suffix.lower() not in (".png", ".html"):
            raise Mistake(f"--out is {self.out}: its name must end in .png or .html")
        if self.neighbours and not self.page:
            raise Mistake("--neighbours are shown on a page: name it by --out errors.html")
        if self.images and (self.true != "any" or self.target == "true" or self.faithfulness):
            raise Mistake("--true, --target true and --faithfulness need labels, which --images do not have")
        if self.true == self.pred != "any":
            raise Mistake(f"--true and --pred are both {self.true}, but an error's two classes differ")

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises Mistake where a flag names a class that is none of the model's."""
        for flag, words in WORDS.items():
            name = getattr(self, flag)
            if name not in (*words, *classes):
                near = get_close_matches(name, classes) or [*classes[:10], *["..."] * (len(classes) > 10)]
                known = ", ".join((*words, *near))
                raise Mistake(f"--{flag} is {name}: {self.ckpt} has no such class; it knows {known}")

    @property
    def page(self) -> bool:
        return Path(self.out).suffix.lower() == ".html"

    @property
    def order(self) -> str:
        """The order of what is shown: without labels there is no loss."""
        return "confidence" if self.images and self.sort == "loss" else self.sort

    @property
    def choice(self) -> str:
        """Which errors are drawn, in words."""
        words = [ORDERS[self.order].format(seed=self.seed)]
        words += [f"true class {self.true}"] * (self.true != "any")
        words += [f"predicted class {self.pred}"] * (self.pred != "any")
        return ", ".join(words)
