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

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from explain.options import GradcamOptions
from ground.entry import execute
from ground.terminal import print_result
from run.stopwatch import Stopwatch


def main(arguments: Sequence[str]) -> None:
    import tyro

    description = (__doc__ or "").split("\n\n")[0]
    options = tyro.cli(GradcamOptions, args=list(arguments), description=description, prog="gradcam.py")
    preflight.require_dali()
    preflight.check_driver(options.device)
    result = explain_errors(options)
    print_result(lines(result), result)


def explain_errors(options: GradcamOptions) -> dict[str, Any]:
    """Options -> checkpoint -> cases -> maps -> files; returns what there is to report."""
    from explain import cam, faithfulness, gallery, outputs, page, study  # --help loads nothing heavy
    from explain.explainer import Explainer
    from explain.neighbours import find

    checkpoint = options.load()
    config = checkpoint.config
    data = [config.data] if config.own_pictures else []
    outputs.check(options.out, not options.images, [options.ckpt, options.data, *options.images, *data])
    explainer = Explainer.of(checkpoint, options.device, options.precision, options.threads)
    options.check_classes(explainer.model.classes)

    if options.images:
        errors = study.of_pictures(explainer, options.images, config.side, config.fit)
    else:
        errors = study.of_split(explainer, checkpoint, options.open_data(checkpoint))
    cases, clock = errors.cases, Stopwatch({})
    difference = cam.check_class_maps(explainer.model, cases.inputs[:8])
    drawn = cases.select(options.order, options.true, options.pred, options.seed)[: options.n]

    with clock.on("heatmap"):
        maps = explainer.explain(cases, options.layer, options.method, options.target, options.page)
    checks = None
    if options.faithfulness:
        with clock.on("faithfulness"):
            checks = faithfulness.measure(explainer, maps, options.seed)
        print(*checks.lines(), sep="\n")
    near = None
    if options.neighbours and len(cases):
        train, _ = options.open_data(checkpoint).splits(config.validate, config.fold)
        with clock.on("neighbours"):
            near = find(explainer, cases, train)
    with clock.on("file"):
        source = f"{options.ckpt}: {explainer}"
        if options.page:
            promise = [str(checkpoint.known.keep())] if checkpoint.known else []
            content = page.render(errors, maps, checks, options, source, promise, near)
        else:
            content = gallery.draw(maps, drawn, options.choice, source)
        files = outputs.write(options.out, content, maps)

    # The evaluation itself yields layer4's maps, of all classes of all images.
    seconds = errors.seconds if options.layer == "layer4" else clock["heatmap"]
    result: dict[str, Any] = {"layer": options.layer, "method": options.method}
    result |= {"target": options.target, "maps": len(cases), "maps_computed": maps.computed}
    result |= errors.plain() | {
        "drawn": len(cases) if options.page else len(drawn),
        "files": files,
        "precision": explainer.machine.precision,
        "maps_per_second": maps.computed / seconds,
        "layer4_against_autograd": difference,
    }
    result |= {"faithfulness": asdict(checks)} if checks else {}
    return result | {f"{kind}_seconds": spent for kind, spent in clock.seconds().items()}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What a person is told at the end."""
    if "errors" in result:
        same = result["errors"] == result["checkpoint_errors"]
        differ = "; the checkpoint says {checkpoint_errors:,}: data, hardware, precision or versions differ"
        text = "{errors:,} errors of {total:,} {split} images: {accuracy:.2%} right"
        yield (text + (", just as the checkpoint says" if same else differ)).format_map(result)
        if result["confusions"]:
            pairs = (f"{true} taken for {predicted} ({n})" for true, predicted, n in result["confusions"])
            yield "most often " + ", ".join(pairs)
        text = "confidence and accuracy differ by {calibration_error:.2%} on average (ECE)"
        if result["temperature"] != 1:
            text += "; by {calibration_error_without:.2%} without the checkpoint's temperature of {temperature:.2f}"
            text += ", which was fitted to these very images" if result["temperature_fitted_here"] else ""
        yield text.format_map(result)
    else:
        yield "{pictures:,} pictures".format_map(result)
        yield from (f"skipped {line}" for line in result["skipped"])
    text = "{maps:,} heatmaps, one an image; {maps_computed:,} maps were computed, {maps_per_second:,.0f} a second"
    yield text.format_map(result)
    text = "took {evaluation_seconds:.1f} s for the evaluation, {heatmap_seconds:.1f} s for heatmaps after it, "
    yield (text + "{file_seconds:.1f} s for the files").format_map(result)
    yield "wrote {0} (shows {drawn}), {1} and {2} (all)".format(*result["files"], drawn=result["drawn"])


if __name__ == "__main__":
    execute(main, "gradcam.py")
