"""Colour of kernels, and neighbours of images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from alexlab.config.data import data_config
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.predictions import split_loader
from alexlab.papers.net_measures import colour_shares, excess_gap, kernel_colours, neighbours
from alexlab.papers.paper import Claim
from alexlab.records.results import read_run
from alexlab.records.saved_predictions import read_predictions


def test_a_grey_kernel_has_no_colour_and_an_opponent_kernel_only_colour() -> None:
    pattern = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(0))
    pattern -= pattern.mean()
    grey, opponent = pattern.expand(3, 5, 5), torch.cat([pattern, -pattern, 0 * pattern])
    red = torch.cat([pattern, 0 * pattern, 0 * pattern])  # a third of it is brightness
    assert colour_shares(torch.stack([grey + 7, opponent, red])) == pytest.approx([0, 1, 2 / 3], abs=1e-6)


def test_towers_that_specialize_differ_by_more_than_random_halves() -> None:
    generator = np.random.default_rng(1)
    grey, coloured = generator.uniform(0, 0.3, 24), generator.uniform(0.7, 1, 24)
    assert excess_gap(grey, coloured) > 0.6
    mixed = np.concatenate([grey, coloured])
    generator.shuffle(mixed)
    assert abs(excess_gap(mixed[:24], mixed[24:])) < 0.15


def claim(kind: str) -> Claim:
    return Claim(title="", place="", statement="", kind=kind, settings=["baseline"])


def test_the_kernels_of_both_towers_of_each_net_are_measured(
    train: Callable[..., float | None], trained_run: Path, tmp_path: Path
) -> None:
    runs = []
    for seed, colours in ((1, (0.0, 1.0)), (2, (0.0, 1.0)), (3, (0.5, 0.5))):
        folder = tmp_path / f"run-{seed}"
        train("model.groups=[1,2,1,2,2]", "model.widths=[8,8,8,8,8]", f"seed={seed}", run_dir=folder)
        path = folder / "checkpoints/best.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        name = next(name for name in checkpoint["state_dict"] if name.startswith("net.") and name.endswith("weight"))
        kernels = checkpoint["state_dict"][name]
        pattern = torch.randn(kernels.shape[2:], generator=torch.Generator().manual_seed(seed))
        pattern -= pattern.mean()
        for number, kernel in enumerate(kernels):  # a share of 0.5 means that every other kernel is coloured
            share = colours[number * 2 // len(kernels)]
            is_coloured = number % 2 if share == 0.5 else share
            kernel[:] = torch.stack([pattern, -pattern / 0.99**seed, 0 * pattern]) if is_coloured else pattern
        torch.save(checkpoint, path)
        runs.append(read_run(folder))
    found = kernel_colours(claim("kernel_colours"), {"baseline": runs[:2]})
    assert found is not None and "0.00 and 1.00; 0.00 and 1.00" in found.detail and found.verdict == "agrees"
    assert 0.6 < found.estimate.value <= 1 and [len(group) for group in found.grids[0].groups] == [1, 1]
    mixed = kernel_colours(claim("kernel_colours"), {"baseline": runs})
    assert mixed is not None and "; 0.50 and 0.50" in mixed.detail and mixed.verdict == "inconclusive"
    assert kernel_colours(claim("kernel_colours"), {"baseline": [read_run(trained_run)]}) is None, "one tower"


def test_neighbours_are_counted_by_class_and_shown_with_the_five_answers(trained_run: Path) -> None:
    run = read_run(trained_run)
    found = neighbours(claim("neighbours"), {"baseline": [run]})
    kept = read_predictions(trained_run, "val")
    assert found is not None and kept is not None and found.estimate.value is not None
    model = load_checkpoint(str(trained_run), device="cpu")
    settings = data_config(run.record["config"])
    splits = settings.find_splits()
    inputs: list[torch.Tensor] = []
    last = [layer for layer in model.single.net.modules() if isinstance(layer, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    for split in (splits.train, splits.val):
        with torch.no_grad():
            model.single(torch.cat([images for images, _, _ in split_loader(split, model.reader(), settings)]))
    train, val = (each.double() for each in inputs)
    rows = torch.cdist(val, train).argsort(1)[:, :6].numpy()
    labels = {"train": np.array(splits.train.labels), "val": np.array(splits.val.labels)}
    share = (labels["train"][rows] == labels["val"][:, None]).mean()
    chance = sum((labels["train"] == k).mean() * (labels["val"] == k).mean() for k in range(3))
    assert found.estimate.value == pytest.approx(share - chance, abs=1e-6)
    assert f"of {len(labels['val'])} validation images have its class, by chance {100 * chance:.1f} %" in found.detail
    groups = found.grids[0].groups
    assert len(groups) == 5 and {len(group) for group in groups} == {7}
    first = groups[0][0].lines
    assert first[0] == f"true: {kept.classes[kept.labels[0]]}" and len(first) == 1 + kept.top_classes.shape[1]
