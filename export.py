"""Write a checkpoint's model as one file that runs without this repository.

    python export.py --ckpt model.pt --out model.onnx      # for onnxruntime: phones, browsers, services
    python export.py --out small.onnx --int8               # a quarter of the size; what that costs is measured
    python export.py --out model.pt2 --maps                # torch.export, with layer4's class maps
    python export.py --out model.safetensors               # the weights alone, under torchvision's names

It takes uint8 pictures (N, S, S, 3) and gives probabilities: resizing, normalising and softmax are inside. Before the
file is written it runs real images, and must give what the checkpoint gives. The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("export.py")

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ground.mistake import Mistake

CHECKED, CALIBRATED = 256, 512  # images


@dataclass(frozen=True, kw_only=True)
class Options:
    ckpt: str = "model.pt"
    """Checkpoint that train.py wrote."""
    out: str = "model.onnx"
    """The file: .onnx, .pt2 (torch.export) or .safetensors (weights alone)."""
    maps: bool = False
    """Give layer4's class maps too, (N, C, h, w): a heatmap of every class without a gradient."""
    int8: bool = False
    """Quantise to int8, calibrated on training images, and measure it on all images that the checkpoint was reported
    on."""
    threads: int = 0
    """CPU threads (0: one per core)."""

    def __post_init__(self) -> None:
        kind = Path(self.out).suffix
        if kind not in (".onnx", ".pt2", ".safetensors"):
            raise Mistake(f"--out is {self.out}: its name must end in .onnx, .pt2 or .safetensors")
        if self.int8 and kind != ".onnx":
            raise Mistake(f"--out is {self.out}: with --int8 its name must end in .onnx")
        if self.maps and kind == ".safetensors":
            raise Mistake(f"--out is {self.out}: weights alone give no --maps")
        if not 0 <= self.threads <= 1024:
            raise Mistake(f"--threads is {self.threads}: it must be 0 to 1024")


def main() -> None:
    import tyro

    options = tyro.cli(Options, description=(__doc__ or "").split("\n\n")[0], prog="export.py")
    preflight.require_export(Path(options.out).suffix)
    from ground.entry import execute

    execute(lambda arguments: report(export(options)), "export.py")


def export(options: Options) -> dict[str, Any]:
    """Options -> checkpoint -> file -> the file opened again and compared; returns what there is to report."""
    import torch

    from deploy import check, classifier, formats
    from engine import checkpoint
    from engine.device import configure
    from ground.files import check_writable, write_whole
    from pipeline.dataset import open_dataset

    out, ckpt = Path(options.out), Path(options.ckpt)
    check_writable(out)
    if not ckpt.exists():
        raise Mistake(f"{ckpt}: no such checkpoint: `make train` makes model.pt, --ckpt names another")
    loaded = checkpoint.load(ckpt)
    config, threads = loaded.config, configure(torch.device("cpu"), options.threads)
    data, held_out = open_dataset(config.data, config.size, config.fit), (config.validate, config.fold)
    train, split = data.splits(*held_out) if options.int8 else (None, data.reported(*held_out))
    model = classifier.Classifier(loaded.model, split.side, options.maps)
    facts = classifier.facts(loaded, ckpt, split.side)
    content, run = formats.made(out.suffix, model, facts, threads)
    images = split.sample(CHECKED)
    difference = check.checked(run, loaded.model, images)
    measured = {}
    if train is not None:
        small = formats.quantised(content, train.sample(CALIBRATED))
        runs = {"checkpoint": (ckpt.stat().st_size, formats.of_torch(model)), "float32": (len(content), run)}
        runs["int8"] = len(small), formats.of_onnx(small, threads)
        difference = check.difference(runs["int8"][1], loaded.model, images)
        measured = {name: {"size": size} | check.measure(one, split) for name, (size, one) in runs.items()}
        on = classifier.accuracy_on(loaded, "this file")
        facts |= {"accuracy": str(measured["int8"]["accuracy"]), "accuracy_on": on}
        content = formats.with_facts(small, facts)
    write_whole(out, content)
    return facts | {
        "file": str(out),
        "bytes": len(content),
        "outputs": ["weights"] if out.suffix == ".safetensors" else model.outputs,
        "checked_images": len(images),
        "largest_difference": difference,
        "threads": threads,
        "measured": measured,
    }


def report(result: dict[str, Any]) -> None:
    """The closing lines, and `result` itself as the last."""
    line = "{file}: {bytes:,} bytes; for pictures of {size} x {size} pixels it gives {0}"
    print(line.format(" and ".join(result["outputs"]), **result))
    line = "on {checked_images} images it differs from the checkpoint by {largest_difference:.1e} at most"
    print(line.format(**result))
    for name, row in result["measured"].items():
        print("{0:10} {size:12,} bytes  {accuracy:7.2%}  {images_per_second:9,.0f} images/s".format(name, **row))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
