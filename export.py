"""Write a checkpoint's model as one file that runs without this repository.

    python export.py --ckpt model.pt --out model.onnx      # for onnxruntime: phones, browsers, services
    python export.py --out small.onnx --int8               # a quarter of the size; what that costs is measured
    python export.py --out model.pt2 --maps                # torch.export, with layer4's class maps
    python export.py --out model.safetensors               # the weights alone, under torchvision's names
    python export.py --out features.npz --data holiday     # layer4's features of each picture
    python export.py --random                              # where the data set is not at hand

It takes uint8 pictures (N, S, S, 3) and gives probabilities: resizing, normalising and softmax are inside. Before the
file is written it runs real images, and must give what the checkpoint gives. The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("export.py")

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explain.options import CheckpointOptions
from ground.entry import execute
from ground.mistake import Mistake
from ground.terminal import print_result

CHECKED, CALIBRATED = 256, 512  # images
KINDS = (".onnx", ".pt2", ".safetensors", ".npz")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(CheckpointOptions):
    out: str = "model.onnx"
    """The file: .onnx, .pt2 (torch.export), .safetensors (weights alone); or .npz, the features of
    all pictures of the data set, or of those in the folder or table that --data names."""
    random: bool = False
    """Check the file on random images, not on those of the data set, which then need not be there."""
    maps: bool = False
    """Give layer4's class maps too, (N, C, h, w): a heatmap of every class without a gradient."""
    features: bool = False
    """Give layer4's features too, averaged over the image, (N, K): like pictures have like ones."""
    int8: bool = False
    """Quantise to int8, calibrated on training images, and measure it on all images that the checkpoint was reported
    on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = Path(self.out).suffix
        if kind not in KINDS:
            raise Mistake(f"--out is {self.out}: its name must end in {', '.join(KINDS)}")
        if self.int8 and kind != ".onnx":
            raise Mistake(f"--out is {self.out}: with --int8 its name must end in .onnx")
        if self.int8 and self.random:
            raise Mistake("--int8 is calibrated on the data set: leave --random out")
        if (self.maps or self.features) and kind == ".safetensors":
            raise Mistake(f"--out is {self.out}: weights alone give no --maps and no --features")
        if kind == ".npz" and (self.maps or self.features or self.random):
            raise Mistake(f"--out is {self.out}: leave --maps, --features and --random out")


def main(arguments: Sequence[str]) -> None:
    import tyro

    description = (__doc__ or "").split("\n\n")[0]
    options = tyro.cli(ExportOptions, args=list(arguments), description=description, prog="export.py")
    preflight.require_export(Path(options.out).suffix)
    if Path(options.out).suffix == ".npz":
        preflight.require_dali()
    result = export(options)
    print_result(lines(result), result)


def export(options: ExportOptions) -> dict[str, Any]:
    """Options -> checkpoint -> file -> the file opened again and compared; returns what there is to report."""
    import numpy as np  # --help loads nothing heavy
    import torch

    from deploy import classifier, formats
    from engine.machine import Machine
    from ground.files import check_output, destination, write_whole
    from pipeline.split import Split

    out, ckpt = Path(options.out), Path(options.ckpt)
    loaded = options.load()
    config, threads = loaded.config, Machine.on(torch.device("cpu"), threads=options.threads).threads
    check_output(out, inputs=[ckpt, options.data, *[config.data] * config.own_pictures], mark=classifier.MARK)
    held_out, side = (config.validate, config.fold), config.side or loaded.model.resolution
    if out.suffix == ".npz":
        from judge import features

        facts = classifier.facts(loaded, ckpt, classifier.Classifier(loaded.model, side))
        return features.write(options, loaded, facts, options.out)
    train: Split | None = None
    split: Split | None = None
    if options.random:
        images = np.random.default_rng(0).integers(0, 256, (CHECKED, side, side, 3), np.uint8)
    else:
        data = options.open_data(loaded)
        train, split = data.splits(*held_out) if options.int8 else (None, data.reported(*held_out))
        images, side = split.sample(CHECKED), split.side
    promise = loaded.known.keep() if loaded.known and out.suffix != ".safetensors" else None
    model = classifier.Classifier(loaded.model, side, options.maps, promise, options.features)
    facts = classifier.facts(loaded, ckpt, model)
    content, run = formats.made(out.suffix, model, facts, threads)
    difference = formats.checked(run, loaded.model, images, promise)
    measured = {}
    if train and split:
        small = formats.quantised(content, train.sample(CALIBRATED))
        runs = {"checkpoint": (ckpt.stat().st_size, formats.of_torch(model)), "float32": (len(content), run)}
        runs["int8"] = len(small), formats.of_onnx(small, threads)
        difference = formats.difference(runs["int8"][1], loaded.model, images)
        measured = {name: {"size": size} | formats.measure(one, split) for name, (size, one) in runs.items()}
        facts["accuracy"] = str(measured["int8"]["accuracy"])
        facts["accuracy_on"] = classifier.accuracy_on(loaded, "this file")
        content = formats.with_facts(small, facts)
    write_whole(destination(out), content)
    return facts | {
        "file": str(out),
        "bytes": len(content),
        "outputs": ["weights"] if out.suffix == ".safetensors" else model.outputs,
        "checked_images": len(images),
        "largest_difference": difference,
        "threads": threads,
        "measured": measured,
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What a person is told at the end."""
    if "pictures" in result:
        yield from (f"skipped {line}" for line in result["skipped"])
        text = "{file}: {bytes:,} bytes; {width:,} features of {pictures:,} pictures; "
        yield (text + "{skipped_total:,} skipped").format_map(result)
        return
    text = "{file}: {bytes:,} bytes; for pictures of {size} x {size} pixels it gives {0}"
    yield text.format(" and ".join(result["outputs"]), **result)
    text = "on {checked_images} images it differs from the checkpoint by {largest_difference:.1e} at most"
    yield text.format(**result)
    for name, row in result["measured"].items():
        yield "{0:10} {size:12,} bytes  {accuracy:7.2%}  {images_per_second:9,.0f} images/s".format(name, **row)


if __name__ == "__main__":
    execute(main, "export.py")
