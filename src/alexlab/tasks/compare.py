"""Task of `python src/compare.py A B`: two nets image by image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexlab.distributed.imports import import_lightning
from alexlab.errors import ConfigError
from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line
from alexlab.records.run import Run
from alexlab.tasks.counts import check_counts

if TYPE_CHECKING:
    from alexlab.data.splits import Split
    from alexlab.inference.compare.sides import Member, Side
    from alexlab.inference.compare.sources import Evaluated, Kept
    from alexlab.records.saved_predictions import SavedPredictions


def main(run: Run) -> None:
    """Compare two nets on the same images, print tables, and write `compare.html`, `comparison.csv` and `scores.json`.

    Raises:
        AlexlabError: if a side, the data or an option is invalid, or the sides have no image in common.
    """
    from alexlab.data.class_names import read_class_names
    from alexlab.inference.compare.comparison import check_common, match
    from alexlab.inference.compare.pictures import picture_grids
    from alexlab.inference.compare.report import Context, summary_tables, write_files, write_page
    from alexlab.inference.compare.sides import concatenate, find_side
    from alexlab.output.terminal import Terminal

    check(run.config)
    check_counts(run.config, {"num_images": 0})
    file = run.config["class_names"]
    class_names = None if file is None else read_class_names(file)
    sides = [find_side(str(name)) for name in run.config["runs"]]
    sources = find_sources(sides, run.config, run.dir)
    paths = [[path for source in side for path in source.paths] for side in sources]
    common = {*paths[0]} & {*paths[1]}
    check_common(paths, len(common))
    a, b = (
        concatenate([source.predict(common) for source in side if not common.isdisjoint(source.paths)])
        for side in sources
    )
    context = Context(sides, sources)
    names = [trained.record["config"].get("class_names") for runs in context.runs for trained in runs]
    if class_names is None:
        class_names = next((each for each in names if isinstance(each, dict)), None)
    comparison = match(a, b, class_names, sizes=(len(paths[0]), len(paths[1]), len(common)))
    for table in summary_tables(comparison, context):
        Terminal().print_table(table)
    for line in (comparison.verdict, *context.notes, *comparison.notes):
        Terminal().print_lines(line)
    grids = picture_grids(comparison, context, run.config["num_images"])
    write_files(comparison, context, run.dir)
    write_page(comparison, context, run.dir / "compare.html", grids)
    print_line(f"{short_path(run.dir)}/compare.html, comparison.csv, scores.json")


def check(config: dict[str, Any]) -> None:
    """Check what can be checked before anything is read.

    Raises:
        ConfigError: if there are not two sides, or one of them may have been trained on the split.
    """
    from alexlab.inference.compare.sources import check_split

    names = config["runs"]
    if len(names) != 2:
        given = ", ".join(map(str, names)) or "nothing"
        raise ConfigError(
            f"compare needs two runs, sweeps, checkpoints or exported .safetensors files: compare.py A B; got {given}"
        )
    check_split(config["split"], from_run=config["data"]["root"] is None and config["data"]["url"] is None)


def find_sources(sides: "Sequence[Side]", config: dict[str, Any], out_dir: Path) -> "list[list[Kept | Evaluated]]":
    """Return for each side the sources of its predictions: one, or one per fold."""
    from alexlab.inference.compare.sources import kept_source, recorded_split

    split = config["split"]
    if split is None and config["data"]["root"] is None and config["data"]["url"] is None:
        split = recorded_split([member for side in sides for member in side.members])
    sources = []
    for side in sides:
        found: list[Kept | Evaluated] = []
        for members in side.parts(split):
            kept = None if split is None else kept_source(members, split, config)
            found.append(kept or evaluated_source(members, {**config, "split": split}, out_dir))
        paths = [path for source in found for path in source.paths]
        if len({*paths}) < len(paths):  # other images, which the folds do not divide
            found = [evaluated_source(side.members, {**config, "split": split}, out_dir)]
        sources.append(found)
    return sources


def evaluated_source(members: "Sequence[Member]", config: dict[str, Any], out_dir: Path) -> "Evaluated":
    """Return the evaluation of a checkpoint on its own evaluation split, or on the images that the config names.

    Args:
        members: nets whose probabilities are averaged.
        config: config of the command.
        out_dir: folder of the list of unreadable images.
    """
    import_lightning()

    from alexlab.inference.checkpoint import load_checkpoint
    from alexlab.inference.compare.sources import Evaluated, check_split, recorded_runs, to_kept
    from alexlab.inference.held_out import held_out_split
    from alexlab.inference.predictions import predict_split
    from alexlab.records.layout import SKIPPED
    from alexlab.tasks.evaluate import data_settings

    paths = [str(member.path) for member in members]
    model = load_checkpoint(paths, class_names=config["class_names"], device=config["device"])
    settings, from_run = data_settings(model, config["data"])
    check_split(config["split"], from_run=from_run)
    name, split = held_out_split(model, settings, config["split"], from_run=from_run)

    def evaluate(part: "Split") -> "SavedPredictions":
        label = f"{model.label}, {name}: {len(part):,} images"
        found = predict_split(model, part, settings, views=config["views"], title=label, skipped=out_dir / SKIPPED)
        return to_kept(found[0])

    return Evaluated(split, name, settings.decoding, evaluate, recorded_runs(model))
