"""Find every image that a checkpoint gets wrong, compute a heatmap for each, and show them.

    python gradcam.py --ckpt model.pt --out gallery.png             # a picture of the ten largest losses
    python gradcam.py --out errors.html --faithfulness              # a page of all errors, to filter and sort
    python gradcam.py --true cat --pred dog --layer layer3 --n 20   # cats taken for dogs, in a finer grid
    python gradcam.py --images holiday --out holiday.html           # pictures of your own

Looks at the images that the checkpoint was reported on (the test set, or those that `--validate` held out), in the
checkpoint's precision and resolution. Writes the picture or the page and, beside it, errors.csv and heatmaps.npz of
all errors. The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("gradcam.py")

import json
from pathlib import Path
from typing import Any

from explain.options import Options


def main() -> None:
    import tyro

    options = tyro.cli(Options, description=(__doc__ or "").split("\n\n")[0], prog="gradcam.py")
    preflight.require_dali()
    preflight.check_driver(options.device)
    from engine import runtime

    runtime.run(lambda arguments: explain_errors(options), "gradcam.py")


def explain_errors(options: Options) -> None:
    """From the checkpoint to the files and the closing lines."""
    from engine import checkpoint, runtime
    from explain import cam, errors, faithfulness, gallery, outputs, page, study
    from explain.phase import Phase
    from ground.files import write_whole
    from pipeline.cifar10 import CLASSES

    out = Path(options.out)
    table, archive = outputs.beside(out, bool(options.images))
    for path in (out, table, archive):
        checkpoint.check_writable(path)
    if not Path(options.ckpt).exists():
        raise ValueError(f"{options.ckpt}: no such checkpoint: `make train` makes model.pt, --ckpt names another")
    loaded = checkpoint.load(options.ckpt)
    model, config, reported = loaded.model, loaded.config, loaded.metrics
    device = runtime.pick_device(options.device)
    threads = runtime.configure(device, options.threads)
    precision: str = options.precision
    if precision == "checkpoint":
        precision = reported.get("precision", "auto")
        if precision == "fp16" and device.type == "cpu":
            precision = "fp32"  # fp16 is for GPUs alone
    precision = runtime.pick_precision(device, precision)
    model.to(device)

    if options.images:
        found = study.of_pictures(options.images, loaded, device, precision)
    else:
        found = study.of_split(loaded, device, threads, precision)
    wrong = found.errors
    difference = cam.check_class_maps(model, wrong.inputs[:8])
    drawn = wrong.select(options.order, options.true, options.pred, options.seed)[: options.n]
    with Phase("heatmaps", len(wrong)) as mapping:
        how = (options.layer, options.method, options.target)
        maps = errors.explain(model, wrong, *how, device, precision, mapping.advance, every=options.page)
    checks = None
    if options.faithfulness:
        with Phase("faithfulness", min(len(wrong), faithfulness.IMAGES)) as checking:
            checks = faithfulness.measure(model, wrong, maps, device, precision, options.seed, checking.advance)
    with Phase("files", len(drawn)) as writing:
        network = f"ResNet-{config.depth} of width {config.width} at {model.resolution} px"
        source = f"{options.ckpt}: {network} in {precision}"
        if options.page:
            content = page.render(found, maps, checks, options, source)
        else:
            content = gallery.draw(wrong, maps, drawn, found.images[drawn], options.choice, source, writing.advance)
        write_whole(table, outputs.errors_csv(wrong))
        write_whole(archive, outputs.heatmaps_npz(wrong, maps))
        write_whole(out, content)

    # The evaluation itself yields layer4's maps, of all classes of all images.
    seconds = found.seconds if options.layer == "layer4" else mapping.seconds
    result = {
        "layer": options.layer,
        "method": options.method,
        "target": options.target,
        "precision": precision,
        "maps": len(maps.chosen),
        "maps_computed": maps.computed,
        "maps_per_second": maps.computed / seconds,
        "layer4_against_autograd": difference,
        "evaluation_seconds": found.seconds,
        "heatmap_seconds": mapping.seconds,
        "file_seconds": writing.seconds,
        "drawn": len(wrong) if options.page else len(drawn),
        "files": [str(out), str(table), str(archive)],
    }
    if found.matrix is not None and found.calibration is not None:
        confusions = errors.top_confusions(found.matrix)
        result |= {
            "errors": len(wrong),
            "total": wrong.total,
            "split": wrong.split,
            "accuracy": 1 - len(wrong) / wrong.total,
            "checkpoint_errors": reported.get("test_total", 0) - reported.get("test_correct", 0),
            "calibration_error": found.calibration.error,
            "confusions": [(CLASSES[true], CLASSES[said], n) for true, said, n in confusions],
        }
    else:
        result |= {"pictures": len(wrong), "skipped": found.skipped}
    if checks:
        result |= {"faithfulness": checks.plain(), "faithfulness_seconds": checking.seconds}
        print(*checks.lines(), sep="\n")
    report(result)


def report(result: dict[str, Any]) -> None:
    """The closing lines, and `result` itself as the last."""
    if "errors" in result:
        print("{errors:,} errors of {total:,} {split} images: {accuracy:.2%} right".format_map(result), end="")
        agree = result["errors"] == result["checkpoint_errors"]
        differ = "; the checkpoint says {checkpoint_errors:,}: hardware, precision or versions differ"
        print(", just as the checkpoint says" if agree else differ.format_map(result))
        if result["confusions"]:
            print("most often " + ", ".join(f"{true} taken for {said} ({n})" for true, said, n in result["confusions"]))
        print("confidence and accuracy differ by {calibration_error:.2%} on average (ECE)".format_map(result))
    else:
        print("{pictures:,} pictures".format_map(result))
        for line in result["skipped"]:
            print(f"skipped {line}")
    print("{maps:,} heatmaps, one an image; {maps_computed:,} maps were computed".format_map(result), end="")
    print(", {maps_per_second:,.0f} a second".format_map(result))
    took = "took {evaluation_seconds:.1f} s for the evaluation, {heatmap_seconds:.1f} s for heatmaps after it, "
    print((took + "{file_seconds:.1f} s for the files").format_map(result))
    print("wrote {0} (shows {drawn}), {1} and {2} (all)".format(*result["files"], drawn=result["drawn"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
