"""Settings compared on the images that their runs predicted, in run folders written by the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB

from alexlab.records.find import find_runs
from alexlab.records.power import seeds_needed
from alexlab.records.ranking import Ranking, rank_groups, verdict
from alexlab.records.ranking_notes import notes
from alexlab.records.report import write_report
from alexlab.records.results import read_runs
from alexlab.records.run_groups import group_seeds
from alexlab.records.saved_predictions import SavedPredictions
from alexlab.records.settings import differing_keys
from alexlab.records.significance import BOOTSTRAP, MCNEMAR, PAIRED_T, WELCH, paired_interval
from support.runs import rows, write_record

LOSS = {"name": "val/loss", "mode": "min"}


def write_run(
    folder: Path,
    probs: np.ndarray | None,
    labels: np.ndarray,
    *,
    lr: float,
    seed: int = 1,
    paths: np.ndarray | None = None,
    data: dict[str, Any] | None = None,
    **record: Any,
) -> None:
    """Write a finished run with its predictions: probabilities (N, K), or none with the given scores."""
    config = {"seed": seed, "optimizer": {"lr": lr}, "data": {"root": "x", **(data or {})}}
    best = {"epoch": 2, "count": len(labels), **record.pop("best", {})}
    if probs is not None:
        top = np.argsort(-probs, axis=1, kind="stable")[:, :5]
        label_prob = probs[np.arange(len(labels)), labels]
        names = np.array([f"{number:05d}.png" for number in range(len(labels))]) if paths is None else paths
        classes = np.array([f"class {number}" for number in range(probs.shape[1])])
        top_probs = np.take_along_axis(probs, top, 1).astype(np.float32)
        kept = SavedPredictions(names, classes, labels, top, top_probs, label_prob.astype(np.float32))
        folder.mkdir(parents=True)
        kept.write(folder, "val")
        best |= {"top1": kept.correct.mean(), "top5": 1.0, "loss": -np.log(label_prob).mean()}
    write_record(folder, config=config, seed=seed, best=best, **record)


def correct_for(labels: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return probabilities (N, 2) of predictions that are correct where the mask says so."""
    predicted = np.where(correct, labels, 1 - labels)
    return np.where(np.arange(2) == predicted[:, None], 0.8, 0.2)


def ranking(folder: Path) -> Ranking:
    runs = read_runs(find_runs([str(folder)]))
    return rank_groups(group_seeds(runs, differing_keys(runs)))


def test_single_runs_are_compared_by_mcnemar(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 100)
    best, other = np.ones(200, bool), np.ones(200, bool)
    best[:4], other[4:20] = False, False
    for lr, correct in ((0.1, best), (0.2, other)):
        write_run(tmp_path / str(lr), correct_for(labels, correct), labels, lr=lr)
    found = ranking(tmp_path)
    difference = found.differences[1]
    assert difference is not None and difference.test == MCNEMAR
    assert difference.p == pytest.approx(stats.binomtest(4, 20).pvalue) and difference.value == pytest.approx(-0.06)
    assert (
        verdict(found)
        == "optimizer.lr=0.1 is best (val top-1 0.9800): optimizer.lr=0.2 (0.9200) is significantly worse."
    )
    assert notes(found) == [
        "Differences to the best are those on the same 200 validation images, tested by McNemar's exact test.",
        "With one seed per setting, the test accounts for the choice of images but not for the randomness of training.",
    ]
    write_report([str(tmp_path)], tmp_path / "out")
    table = (tmp_path / "out/report.md").read_text()
    _, low, high = paired_interval(other.astype(float) - best)
    assert f"| -6.00 ({100 * low:.2f} to {100 * high:.2f}) | 0.012 |" in table


def test_the_best_of_many_settings_can_be_significant(tmp_path: Path) -> None:
    """With 60 settings, Holm's correction multiplies the smallest p-value by 59."""
    generator, labels = np.random.default_rng(0), np.zeros(300, np.int64)
    for number in range(60):
        correct = generator.random(300) < (0.95 if number == 7 else 0.4)
        for seed in (1, 2):
            folder = tmp_path / f"{number}_{seed}"
            write_run(folder, correct_for(labels, correct), labels, lr=0.1 + number, seed=seed)
    found = ranking(tmp_path)
    assert all(difference is None or difference.is_significant for difference in found.differences)
    assert "winner" not in verdict(found) or "No clear" not in verdict(found)


def test_runs_that_cannot_be_paired_are_tested_as_independent_samples(tmp_path: Path) -> None:
    """A run without predictions, one with a corrupt file, one with other labels, and one with other paths."""
    labels = np.repeat([0, 1], 50)
    correct = np.arange(100) % 10 > 0
    probs = correct_for(labels, correct)
    write_run(tmp_path / "0", correct_for(labels, np.arange(100) > 0), labels, lr=0.0)
    write_run(tmp_path / "1", None, labels, lr=0.1, best={"top1": 0.9, "loss": 0.3})
    write_run(tmp_path / "2", probs, labels, lr=0.2)
    (tmp_path / "2/predictions/val.npz").write_bytes(b"x")
    flipped = np.where(np.arange(100) == 0, 1 - labels, labels)
    write_run(tmp_path / "3", correct_for(flipped, correct), flipped, lr=0.3)
    write_run(tmp_path / "4", probs, labels, lr=0.4, paths=np.array([f"other/{number:03d}" for number in range(100)]))
    write_run(
        tmp_path / "5",
        probs[::-1],
        labels[::-1],
        lr=0.5,
        paths=np.array([f"{number:05d}.png" for number in range(100)][::-1]),
    )
    found = ranking(tmp_path)
    by_lr = dict(zip([group.keys["optimizer.lr"] for group in found.groups], found.differences, strict=True))
    tests = {lr: difference and difference.test for lr, difference in by_lr.items()}
    assert tests == {0.0: None, 0.1: WELCH, 0.2: WELCH, 0.3: WELCH, 0.4: WELCH, 0.5: MCNEMAR}, (
        "in any order of the rows"
    )
    welch = stats.ttest_ind_from_stats(0.9, 0.3, 100, 0.99, np.sqrt(0.99 * 0.01), 100, equal_var=False).pvalue
    exact = stats.binomtest(0, 9).pvalue
    assert (by_lr[0.1].p, by_lr[0.5].p) == pytest.approx((5 * welch, 5 * min(exact, welch))) or by_lr[
        0.5
    ].p == pytest.approx(5 * exact)
    unpaired, _, holm = notes(found)[1:]
    assert unpaired == (
        "Not paired with the best, and tested by Welch's unpaired t-test: optimizer.lr=0.1, optimizer.lr=0.2, optimizer.lr=0.3, "
        "optimizer.lr=0.4. Pairing needs the saved predictions of all runs, on the same images."
    )
    assert holm == "p-values are corrected for 5 comparisons (Holm); intervals are not."


def test_the_verdict_names_the_settings_that_are_not_significantly_worse(tmp_path: Path) -> None:
    """Three good settings and three bad ones, of three paired seeds."""
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], 200)
    for lr, rate in ((0.1, 0.9), (0.2, 0.9), (0.3, 0.9), (0.4, 0.6), (0.5, 0.6), (0.6, 0.6)):
        for seed in (1, 2, 3):
            correct = generator.random(400) < rate
            write_run(tmp_path / f"{lr}_{seed}", correct_for(labels, correct), labels, lr=lr, seed=seed)
    found = ranking(tmp_path)
    assert {group.keys["optimizer.lr"] for group in found.tied} == {0.1, 0.2, 0.3} and not found.is_clear
    sentence = verdict(found)
    assert sentence.startswith("No clear winner among 3 of 6 settings: optimizer.lr=0.")
    assert sentence.endswith(
        "do not differ significantly in val top-1. Choose the cheapest one, or train more seeds of them."
    )
    first, holm, power = notes(found)
    assert first.endswith("the same 400 validation images, tested by a paired bootstrap.") and "5 comparisons" in holm
    assert power.startswith("To detect a difference of 0.5 points, you need ")


def test_the_number_of_seeds_follows_from_the_measured_spread(tmp_path: Path) -> None:
    """Images that are either easy or hard for every net add no error of their own: each seed loses other ones."""
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], 2000)
    for lr in (0.1, 0.2):
        for seed in (1, 2, 3):
            correct = np.ones(4000, bool)
            correct[generator.choice(4000, generator.integers(100, 180), replace=False)] = False
            write_run(tmp_path / f"{lr}_{seed}", correct_for(labels, correct), labels, lr=lr, seed=seed)
    found = ranking(tmp_path)
    tables = [group.training_scores() for group in found.groups]
    spread = np.std([tables[1][seed] - tables[0][seed] for seed in (1, 2, 3)], ddof=1)
    error = found.differences[1].image_error if found.differences[1] else 0
    count = seeds_needed(0.005, spread, is_paired=True, image_error=error)
    of_images = f", standard error due to the images: {100 * error:.2g} points" if error else ""
    assert notes(found)[-1] == (
        f"To detect a difference of 0.5 points{'' if error else ' on these images'}, you need about {count} seeds of each setting "
        f"(80 % power; measured standard deviation of the differences between paired seeds: {100 * spread:.2g} points{of_images})."
    )


def test_seeds_on_other_images_are_tested_with_the_choice_of_the_images(tmp_path: Path) -> None:
    """Settings that differ in data.split_seed: every net gets the easy images of its own validation split right."""
    labels = np.repeat([0, 1], 150)
    for split_seed, wrong in ((0, 105), (1, 120)):
        paths = np.array([f"{split_seed}/{number:03d}" for number in range(300)])
        for seed in (1, 2, 3):
            correct = np.arange(300) >= wrong + seed * (1 + split_seed)
            data = {"split_seed": split_seed}
            write_run(tmp_path / f"{split_seed}_{seed}", correct_for(labels, correct), labels, lr=0.1, seed=seed, paths=paths, data=data)  # fmt: skip
    found = ranking(tmp_path)
    difference = found.differences[1]
    assert difference is not None and difference.test == WELCH
    p = 1 - np.array([124, 107]) / 300
    error = np.sqrt((p * (1 - p)).sum() / 300)
    assert difference.image_error == pytest.approx(error, rel=0.01)
    assert difference.p == pytest.approx(2 * stats.norm.sf(17 / 300 / error), abs=0.01) and not found.is_clear
    assert "standard error due to the choice of these 300 images: 4 points" in notes(found)[-1]

    # Another metric has no known spread over the images, so its seeds say nothing about other images.
    for folder in tmp_path.iterdir():
        record = json.loads((folder / "run.json").read_text())
        record |= {"optimized": {"name": "val/f1", "mode": "max"}}
        record["best"]["f1"] = record["best"]["top1"]
        (folder / "run.json").write_text(json.dumps(record))
    by_f1 = ranking(tmp_path)
    assert by_f1.differences == [None, None]
    assert verdict(by_f1).endswith("a test of their difference needs several seeds of each on the same images, with saved predictions.")  # fmt: skip


def test_one_seed_compared_with_several_is_no_firm_result(tmp_path: Path) -> None:
    """A new setting of one seed is within the spread of the five seeds of the baseline, whose mean is significantly lower alone."""
    labels = np.repeat([0, 1], 2500)
    for seed, right in enumerate((3600, 3700, 3800, 3900, 4000)):
        write_run(tmp_path / f"a_{seed}", correct_for(labels, np.arange(5000) < right), labels, lr=0.1, seed=seed)
    write_run(tmp_path / "b", correct_for(labels, np.arange(5000) < 3950), labels, lr=0.2)
    found = ranking(tmp_path)
    difference = found.differences[1]
    assert difference is not None and difference.test == BOOTSTRAP and difference.p > 0.2
    assert verdict(found).startswith("No clear winner among 2 settings")
    assert (
        "optimizer.lr=0.2 has one seed: the randomness of its training is taken from the setting that it is compared with, and left "
        "out if that has one seed too." in notes(found)
    )
    for folder in tmp_path.iterdir():
        (folder / "predictions/val.npz").unlink()
    unpaired = ranking(tmp_path).differences[1]
    assert unpaired is not None and unpaired.test == WELCH and unpaired.p > 0.2


def test_losses_are_compared_image_by_image_and_other_metrics_by_seed(tmp_path: Path) -> None:
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], 100)
    extra: dict[float, list[float]] = {0.1: [0.80, 0.82, 0.81], 0.2: [0.70, 0.75, 0.72]}
    for lr, values in extra.items():
        for seed, f1 in enumerate(values):
            label_prob = generator.uniform(0.5 if lr == 0.1 else 0.4, 0.9, 200)
            probs = np.where(np.arange(2) == labels[:, None], label_prob[:, None], 1 - label_prob[:, None])
            write_run(tmp_path / f"loss/{lr}_{seed}", probs, labels, lr=lr, seed=seed, optimized=LOSS)
            write_run(
                tmp_path / f"f1/{lr}_{seed}", probs, labels, lr=lr, seed=seed, optimized={"name": "val/f1", "mode": "max"}, best={"f1": f1}
            )  # fmt: skip
    found = ranking(tmp_path / "loss")
    difference = found.differences[1]
    assert difference is not None and difference.test == BOOTSTRAP and found.is_clear
    means = [group.mean("loss") or 0 for group in found.groups]
    assert difference.value == pytest.approx(means[1] - means[0], rel=1e-5) and difference.low > 0
    by_f1 = ranking(tmp_path / "f1").differences[1]
    assert by_f1 is not None and by_f1.test == PAIRED_T
    assert by_f1.p == pytest.approx(stats.ttest_rel(extra[0.1], extra[0.2]).pvalue)


def test_the_score_of_folds_is_that_of_pooled_predictions(tmp_path: Path) -> None:
    """Folds of scikit-learn, with its classifier: `cross_val_predict` gives the same accuracy and predictions."""
    digits = load_digits()
    images, labels = digits.data[:500], digits.target[:500]
    paths = np.array([f"{number:04d}.png" for number in range(500)])
    for lr, smoothing in ((0.1, 1e-9), (0.2, 0.3)):
        for fold, (train, val) in enumerate(KFold(3, shuffle=True, random_state=0).split(images)):
            probs = GaussianNB(var_smoothing=smoothing).fit(images[train], labels[train]).predict_proba(images[val])
            probs = probs.clip(1e-12)
            folds = {"folds": 3, "fold": fold}
            write_run(tmp_path / f"runs/{lr}_{fold}", probs, labels[val], lr=lr, paths=paths[val], data=folds)
    pooled = {
        lr: cross_val_predict(GaussianNB(var_smoothing=smoothing), images, labels, cv=KFold(3, shuffle=True, random_state=0))
        for lr, smoothing in ((0.1, 1e-9), (0.2, 0.3))
    }  # fmt: skip
    found = ranking(tmp_path / "runs")
    for group in found.groups:
        assert group.mean() == pytest.approx(accuracy_score(labels, pooled[group.keys["optimizer.lr"]]))
    best, other = (pooled[group.keys["optimizer.lr"]] == labels for group in found.groups)
    difference = found.differences[1]
    assert difference is not None and difference.test == MCNEMAR
    assert difference.value == pytest.approx(other.mean() - best.mean())
    assert difference.p == pytest.approx(stats.binomtest((best > other).sum(), (best != other).sum()).pvalue)
    write_report([str(tmp_path / "runs")], tmp_path / "out")
    table = rows(tmp_path / "out/out_of_fold.csv")
    assert list(table[0]) == ["optimizer.lr", "seed", "data.fold", "path", "label", "predicted", "label_prob"]
    for lr, predicted in pooled.items():
        by_path = {row["path"]: row for row in table if row["optimizer.lr"] == str(lr)}
        assert [by_path[path]["predicted"] for path in paths] == [f"class {number}" for number in predicted]
        assert [by_path[path]["label"] for path in paths] == [f"class {number}" for number in labels]
    (tmp_path / "runs/0.1_0/run.json").unlink()
    lacking = ranking(tmp_path / "runs")
    best, other = lacking.groups
    assert (best.keys["optimizer.lr"], other.missing_folds, lacking.differences[1]) == (0.2, [0], None)
    assert verdict(lacking).endswith(f". Not compared: optimizer.lr=0.1 ({other.mean():.4f}).")
    assert "Without a finished run of each fold, and therefore not compared: optimizer.lr=0.1 (fold 0)." in notes(
        lacking
    )


def test_a_seed_without_all_folds_does_not_count(tmp_path: Path) -> None:
    """The hard fold of one seed failed: the other folds would have made its setting the best."""
    hard_of: dict[float, list[float]] = {0.1: [0.9, 0.9, 0.5], 0.2: [0.92, 0.92, 0.52]}
    labels = np.repeat([0, 1], 50)
    for lr, accuracies in hard_of.items():
        for seed in (1, 2):
            for fold, accuracy in enumerate(accuracies):
                if (lr, seed, fold) == (0.1, 2, 2):
                    continue
                probs = correct_for(labels, np.arange(100) < 100 * accuracy)
                paths = np.array([f"{fold}_{number:03d}.png" for number in range(100)])
                folds = {"folds": 3, "fold": fold}
                write_run(tmp_path / f"{lr}_{seed}_{fold}", probs, labels, lr=lr, seed=seed, paths=paths, data=folds)
    found = ranking(tmp_path)
    best, other = found.groups
    assert best.keys["optimizer.lr"] == 0.2 and other.mean() == pytest.approx(0.7667, abs=1e-4)
    assert [*other.trainings()] == [1] and other.num_incomplete == 2
    difference = found.differences[1]
    assert difference is not None and difference.test == BOOTSTRAP
    assert "2 finished runs are not counted: the score is not finite, or the seed lacks other folds." in notes(found)


def test_settings_that_cannot_be_tested_are_not_called_equal(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 50)
    for lr, values in {0.1: [0.95], 0.2: [0.10], 0.3: [0.30, 0.31, 0.32]}.items():
        for seed, f1 in enumerate(values):
            optimized, probs = {"name": "val/f1", "mode": "max"}, correct_for(labels, np.arange(100) < 80)
            write_run(tmp_path / f"{lr}_{seed}", probs, labels, lr=lr, seed=seed, optimized=optimized, best={"f1": f1})
    found = ranking(tmp_path)
    assert [group.keys["optimizer.lr"] for group in found.untested] == [0.2] and not found.is_clear
    assert verdict(found) == (
        "optimizer.lr=0.1 is highest (val f1 0.9500): one other setting is significantly worse. Not compared: "
        "optimizer.lr=0.2 (0.1000)."
    )


def test_scores_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 50)
    for lr, values in {0.1: [0.05, 0.053], 0.2: [0.06, float("nan"), 0.062]}.items():
        for seed, error in enumerate(values):
            optimized, probs = {"name": "val/error", "mode": "min"}, correct_for(labels, np.arange(100) < 80)
            write_run(
                tmp_path / f"e/{lr}_{seed}", probs, labels, lr=lr, seed=seed, optimized=optimized, best={"error": error}
            )
            probs = np.full((100, 2), 0.5)
            probs[0] = np.nan if seed == 1 and lr == 0.2 else 0.5
            write_run(tmp_path / f"l/{lr}_{seed}", probs, labels, lr=lr, seed=seed, optimized=LOSS)
    group = ranking(tmp_path / "e").groups[1]
    assert group.training_scores() == {0: 0.06, 2: 0.062} and group.num_incomplete == 1
    assert ranking(tmp_path / "l").groups[1].num_incomplete == 1


def test_a_mean_of_zero_needs_no_note(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 50)
    for lr, values in {0.1: [-0.1, 0.1], 0.2: [0.2, 0.3]}.items():
        for seed, error in enumerate(values):
            optimized, probs = {"name": "val/error", "mode": "min"}, correct_for(labels, np.arange(100) < 80)
            write_run(
                tmp_path / f"{lr}_{seed}", probs, labels, lr=lr, seed=seed, optimized=optimized, best={"error": error}
            )
    assert not any("To detect" in note for note in notes(ranking(tmp_path)))


def test_a_perfect_score_on_few_other_images_is_no_proof(tmp_path: Path) -> None:
    for lr, count, correct in ((0.1, 5, 5), (0.2, 100, 50)):
        labels = np.repeat([0, 1], count)[:count]
        write_run(tmp_path / str(lr), correct_for(labels, np.arange(count) < correct), labels, lr=lr)
    (difference,) = ranking(tmp_path).differences[1:]
    assert difference is not None and difference.test == WELCH
    assert 0.01 < difference.p < 0.2, "Fisher's exact test has p = 0.06"
