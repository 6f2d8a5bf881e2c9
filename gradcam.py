"""Find every image that a checkpoint gets wrong, compute a heatmap for each, and draw some of them.

    python gradcam.py --ckpt model.pt --out gallery.png             # the ten largest losses
    python gradcam.py --true cat --pred dog --layer layer3 --n 20   # cats taken for dogs, in a finer grid

Looks at the images that the checkpoint was reported on (the test set, or those that `--validate` held out), in the
checkpoint's precision and resolution. Writes the picture and, beside it, errors.csv and heatmaps.npz of all errors.
The last line on stdout is JSON.
"""

import json
from pathlib import Path
from typing import Any

import preflight
from explain.options import Options


def main() -> None:
    preflight.require_environment("gradcam.py")
    import tyro

    options = tyro.cli(Options, description=(__doc__ or "").split("\n\n")[0], prog="gradcam.py")
    preflight.require_dali()
    preflight.check_driver(options.device)
    from engine import runtime

    runtime.run(lambda arguments: explain_errors(options), "gradcam.py")


def explain_errors(options: Options) -> None:
    """From the checkpoint to the files and the closing lines."""
    from engine import checkpoint, runtime
    from explain import cam, errors, gallery, outputs
    from explain.phase import Phase
    from pipeline.cifar10 import CLASSES
    from pipeline.dali import evaluation_loader
    from pipeline.splits import test_split, training_splits

    out = Path(options.out)
    table, archive = out.with_name(outputs.CSV_NAME), out.with_name(outputs.NPZ_NAME)
    for path in (out, table, archive):
        checkpoint.check_writable(path)
    loaded = checkpoint.load(options.ckpt)
    config, reported = loaded.config, loaded.metrics
    device = runtime.pick_device(options.device)
    threads = runtime.configure(device, options.threads)
    precision: str = options.precision
    if precision == "checkpoint":
        precision = reported.get("precision", "auto")
        if precision == "fp16" and device.type == "cpu":
            precision = "fp32"  # fp16 is for GPUs alone
    precision = runtime.pick_precision(device, precision)
    split = training_splits(True, config.generated)[1] if config.validate else test_split(config.generated)
    model, side = loaded.model.to(device), loaded.model.resolution

    with Phase("evaluation", len(split.images)) as evaluation:
        loader = evaluation_loader(split, side, device, threads)
        outcome = errors.examine(model, loader, device, precision, evaluation.advance)
        wrong = errors.misclassified(outcome, split)
        difference = cam.check_class_maps(model, wrong.inputs[:8])
    drawn = wrong.select(options.sort, options.true, options.pred, options.seed)[: options.n]
    with Phase("heatmaps", len(wrong)) as mapping:
        how = (options.layer, options.method, options.target)
        maps = errors.explain(model, wrong, *how, device, precision, mapping.advance)
    with Phase("pictures", len(drawn)) as drawing:
        source = f"{options.ckpt}: ResNet-{config.depth} of width {config.width} at {side} px in {precision}"
        images = split.images[wrong.index[drawn]]
        picture = gallery.draw(wrong, maps, drawn, images, options.choice, source, drawing.advance)
        outputs.write_whole(table, outputs.errors_csv(wrong))
        outputs.write_whole(archive, outputs.heatmaps_npz(wrong, maps))
        outputs.write_whole(out, picture)

    # The evaluation itself yields layer4's maps, of all classes of all images.
    seconds = evaluation.seconds if options.layer == "layer4" else mapping.seconds
    matrix = errors.confusion_matrix(outcome.labels, outcome.predicted)
    report(
        {
            "errors": len(wrong),
            "total": wrong.total,
            "split": split.name,
            "accuracy": 1 - len(wrong) / wrong.total,
            "checkpoint_errors": reported.get("test_total", 0) - reported.get("test_correct", 0),
            "calibration_error": errors.calibration(outcome).error,
            "confusions": [(CLASSES[true], CLASSES[said], n) for true, said, n in errors.top_confusions(matrix)],
            "layer": options.layer,
            "method": options.method,
            "target": options.target,
            "precision": precision,
            "maps": len(maps.chosen),
            "maps_computed": maps.computed,
            "maps_per_second": maps.computed / seconds,
            "layer4_against_autograd": difference,
            "evaluation_seconds": evaluation.seconds,
            "heatmap_seconds": mapping.seconds,
            "picture_seconds": drawing.seconds,
            "drawn": len(drawn),
            "files": [str(out), str(table), str(archive)],
        }
    )


def report(result: dict[str, Any]) -> None:
    """The closing lines, and `result` itself as the last."""
    print("{errors:,} errors of {total:,} {split} images: {accuracy:.2%} right".format_map(result), end="")
    if result["errors"] == result["checkpoint_errors"]:
        print(", just as the checkpoint says")
    else:
        print("; the checkpoint says {checkpoint_errors:,}: hardware, precision or versions differ".format_map(result))
    if result["confusions"]:
        print("most often " + ", ".join(f"{true} taken for {said} ({n})" for true, said, n in result["confusions"]))
    print("confidence and accuracy differ by {calibration_error:.2%} on average (ECE)".format_map(result))
    print("{maps:,} heatmaps, one an error; {maps_computed:,} maps were computed".format_map(result), end="")
    print(", {maps_per_second:,.0f} a second".format_map(result))
    took = "took {evaluation_seconds:.1f} s for the evaluation, {heatmap_seconds:.1f} s for heatmaps after it, "
    print((took + "{picture_seconds:.1f} s for the files").format_map(result))
    print("wrote {0} ({drawn} errors), {1} and {2} (all)".format(*result["files"], drawn=result["drawn"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
