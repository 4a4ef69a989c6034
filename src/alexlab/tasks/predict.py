"""Task of `python src/predict.py`: predictions for unlabelled images."""

from alexlab.distributed.imports import import_lightning
from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line
from alexlab.records.run import Run
from alexlab.tasks import evaluate
from alexlab.tasks.counts import check_counts


def main(run: Run) -> None:
    """Write predictions.csv, predictions.jsonl, failed.csv and, with `gallery=true`, gallery.html as images are predicted.

    Raises:
        AlexlabError: if the input or the checkpoint is invalid.
    """
    import_lightning()

    from alexlab.distributed.hardware import num_cores
    from alexlab.inference.input_files import find_files
    from alexlab.inference.predict import predict_files
    from alexlab.inference.prediction_files import PredictionWriter
    from alexlab.output.progress import track

    config = run.config
    check_counts(config, {"top_k": 1, "batch_size": 1, "gallery_limit": 0}, optional={"num_workers": 0})
    model = evaluate.load_model(config)
    predictions = predict_files(
        model.inference,
        find_files(config["input"]),
        model.reader(config["views"]),
        top_k=config["top_k"],
        batch_size=config["batch_size"],
        num_threads=config["num_workers"] or num_cores(),
    )
    gallery_limit = config["gallery_limit"] if config["gallery"] else 0
    with PredictionWriter(run.dir, model, config["input"], gallery_limit=gallery_limit) as writer:
        for prediction in track(predictions, "images"):
            writer.write(prediction)
    writer.print_summary()
    names = [path.name for path in sorted(run.dir.iterdir()) if path.suffix in (".csv", ".jsonl", ".html")]
    print_line(f"{short_path(run.dir)}: {', '.join(names)}")
