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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explain.options import Options
from ground.mistake import Mistake

if TYPE_CHECKING:  # --help loads nothing heavy
    from explain.cases import Ints, Maps
    from explain.faithfulness import Faithfulness
    from explain.study import Study


def main() -> None:
    import tyro

    options = tyro.cli(Options, description=(__doc__ or "").split("\n\n")[0], prog="gradcam.py")
    preflight.require_dali()
    preflight.check_driver(options.device)
    from ground.entry import execute

    execute(lambda arguments: report(explain_errors(options)), "gradcam.py")


def explain_errors(options: Options) -> dict[str, Any]:
    """Options -> checkpoint -> cases -> maps -> files; returns what there is to report."""
    from engine import checkpoint
    from explain import cam, faithfulness, outputs, study
    from explain.explainer import Explainer
    from explain.phase import Phase

    outputs.check(options.out, bool(options.images))
    if not Path(options.ckpt).exists():
        raise Mistake(f"{options.ckpt}: no such checkpoint: `make train` makes model.pt, --ckpt names another")
    loaded = checkpoint.load(options.ckpt)
    explainer = Explainer.of(loaded, options.device, options.precision, options.threads)
    options.check_classes(explainer.model.classes)

    if options.images:
        found = study.of_pictures(explainer, options.images, loaded.config.side, loaded.config.fit)
    else:
        found = study.of_split(explainer, loaded)
    cases = found.cases
    difference = cam.check_class_maps(explainer.model, cases.inputs[:8])
    drawn = cases.select(options.order, options.true, options.pred, options.seed)[: options.n]

    with Phase("heatmaps", len(cases)) as mapping:
        maps = explainer.explain(cases, options.layer, options.method, options.target, options.page, mapping.advance)
    checks = None
    if options.faithfulness:
        with Phase("faithfulness", min(len(cases), faithfulness.IMAGES)) as checking:
            checks = faithfulness.measure(explainer, maps, options.seed, checking.advance)
    with Phase("files", len(drawn)) as writing:
        written = write_files(options, found, maps, checks, drawn, f"{options.ckpt}: {explainer}", writing.advance)

    # The evaluation itself yields layer4's maps, of all classes of all images.
    seconds = found.seconds if options.layer == "layer4" else mapping.seconds
    result = maps.plain() | found.plain() | written
    result |= {
        "precision": explainer.machine.precision,
        "maps_per_second": maps.computed / seconds,
        "layer4_against_autograd": difference,
        "heatmap_seconds": mapping.seconds,
        "file_seconds": writing.seconds,
    }
    if checks:
        result |= {"faithfulness": asdict(checks), "faithfulness_seconds": checking.seconds}
        print(*checks.lines(), sep="\n")
    return result


def write_files(
    options: Options,
    found: "Study",
    maps: "Maps",
    checks: "Faithfulness | None",
    drawn: "Ints",
    source: str,
    on_row: Callable[[], None],
) -> dict[str, Any]:
    """The table, the archive and the picture or page; each is whole or as it was before."""
    from explain import gallery, outputs, page

    if options.page:
        content = page.render(found, maps, checks, options, source)
    else:
        content = gallery.draw(maps, drawn, options.choice, source, on_row)
    files = outputs.write(options.out, bool(options.images), content, maps)
    return {"drawn": len(maps.cases) if options.page else len(drawn), "files": files}


def report(result: dict[str, Any]) -> None:
    """The closing lines, and `result` itself as the last."""
    from ground.terminal import printable

    if "errors" in result:
        print("{errors:,} errors of {total:,} {split} images: {accuracy:.2%} right".format_map(result), end="")
        agree = result["errors"] == result["checkpoint_errors"]
        differ = "; the checkpoint says {checkpoint_errors:,}: data, hardware, precision or versions differ"
        print(", just as the checkpoint says" if agree else differ.format_map(result))
        if result["confusions"]:
            print("most often " + ", ".join(f"{true} taken for {said} ({n})" for true, said, n in result["confusions"]))
        print("confidence and accuracy differ by {calibration_error:.2%} on average (ECE)".format_map(result), end="")
        without = "; by {calibration_error_without:.2%} without the checkpoint's temperature of {temperature:.2f}"
        fitted = ", which was fitted to these very images" if result["temperature_fitted_here"] else ""
        print(without.format_map(result) + fitted if result["temperature"] != 1 else "")
    else:
        print("{pictures:,} pictures".format_map(result))
        for line in result["skipped"]:
            print(f"skipped {printable(line)}")
    print("{maps:,} heatmaps, one an image; {maps_computed:,} maps were computed".format_map(result), end="")
    print(", {maps_per_second:,.0f} a second".format_map(result))
    took = "took {evaluation_seconds:.1f} s for the evaluation, {heatmap_seconds:.1f} s for heatmaps after it, "
    print((took + "{file_seconds:.1f} s for the files").format_map(result))
    print("wrote {0} (shows {drawn}), {1} and {2} (all)".format(*result["files"], drawn=result["drawn"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
