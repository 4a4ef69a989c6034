"""Causes of a loss that does not fall, from measurements of the net at the start of a training and some steps later."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alexlab.output.numbers import listed
from alexlab.training.losses import CrossEntropy
from alexlab.training.measurement import Signal

# Thresholds, with what was measured on 2 cores on 2026-11-27 (digits, Fashion-MNIST, cats and dogs).
AT_GUESSING = 0.98  # of the chance-level loss: stalled nets have 0.99 to 1.01 of it after 100 steps
# Spread of the logits: VGG11/8, NiN and GoogLeNet start at 4e-5, 2e-6 and 3e-7, AlexNets at 2e-4 to 2.
FLAT_LOGITS = 1e-4
LOST = 0.01  # of the spread of the logits at the start
FLAT_LAYER = 0.01  # spread of a layer relative to its output, to name the first layer that loses the signal
FLAT_IMAGES = 1e-3  # spread of the normalized images; of photographs it is about 0.7
BLOWN_UP = 10.0  # growth of a weight
WORSE_THAN_GUESSING = 1.5  # of the chance-level loss
FROZEN_STEP = 1e-6  # change of the weights per step, relative to their size
# The mean change per step that a higher learning rate aims at; of AlexNets, AdamW 1e-4 makes 1e-3, SGD 0.01 1e-4.
GOOD_STEP = 3e-4
# The change in the first step that a lower learning rate aims at; AdamW with lr 1e-3 makes 0.08 to 0.2.
GOOD_FIRST_STEP = 0.1
DYING, ALIVE = 0.9, 0.5  # fraction of dead units of a layer now and at the start
DYING_UNITS = "dying units"  # the cause that is reported although the loss falls
MIN_IMAGES_PER_CLASS = 100  # with fewer, a loss no better than guessing is expected
MIN_SCORED_PER_CLASS = 3  # with fewer, the output of a class may be the same for all images by chance
CHUNK = 256  # classes whose chance-level loss is computed at once


@dataclass(frozen=True)
class State:
    """State of a training after some steps.

    Args:
        loss: mean loss of the last steps.
        guessing: loss of the best prediction that is the same for all images, over the labels of these steps.
        num_classes: number of classes K.
        images_per_class: mean number of training images of a class seen so far.
        classes_seen: number of classes with training images.
        num_steps: optimizer steps so far.
        start, now: signal before the first step and now.
        change: change of the weights per step, see `WeightSamples.change_per_step`.
        growth: growth of a weight and its name, see `WeightSamples.growth`.
        first_change: change of the weights in the first step, scaled to the learning rate `lr`.
        lr: largest learning rate, apart from its schedule.
        warming_up: the learning rate is still rising.
    """

    loss: float
    guessing: float
    num_classes: int
    images_per_class: float
    classes_seen: int
    num_steps: int
    start: Signal
    now: Signal
    change: float
    growth: tuple[float, str]
    first_change: float
    lr: float
    warming_up: bool = False

    @property
    def is_stalled(self) -> bool:
        """True if the loss is not below that of guessing."""
        return self.loss >= AT_GUESSING * self.guessing


@dataclass(frozen=True)
class Cause:
    """Measured cause of a loss that does not fall.

    Args:
        cause: the cause in a few words.
        measured: what was measured.
        remedy: instruction, if no key of the config is the remedy.
        lr: learning rate to try, if it is the remedy. Without both, other initial weights or norms are.
    """

    cause: str
    measured: str
    remedy: str | None = None
    lr: float | None = None

    def advice(self, model: Mapping[str, Any]) -> str:
        """Return what to try.

        Args:
            model: the config node of the net.
        """
        if self.remedy is not None:
            return self.remedy
        if self.lr is not None:
            return f"try optimizer.lr={self.lr:.2g}, or debug=lr_find"
        keys = []
        if model.get("weights") is None and not model.get("pretrained") and model.get("init", "torch") != "he":
            keys.append("model.init=he" if "init" in model else "+model.init=he")
        if model.get("norm") in ("none", "lrn"):
            keys.append("model.norm=batch")
        return f"try {' or '.join(keys)}" if keys else "try a net with batch norms"


def find_cause(state: State) -> Cause | None:
    """Return the first measured cause in the order data, signal, weights; None if there is none."""
    start, now = state.start, state.now
    if state.classes_seen < 2:
        return Cause("one class", "all training images are of one class", "check the labels")
    # Weights that all start at 0 have no relative change.
    change = state.first_change if math.isfinite(state.first_change) else GOOD_FIRST_STEP
    lower = state.lr * min(0.1, _power_of_ten(GOOD_FIRST_STEP / max(change, 1e-12)))
    if not state.is_stalled:
        return _dying_units(state, lower)
    if start.images < FLAT_IMAGES:
        measured = f"after normalization the images of a batch differ by {start.images:.0e} of their size"
        return Cause("equal images", measured, "check preview.png, data.mean and data.std")
    divergence = _divergence(state)
    if divergence is not None:
        return Cause("learning rate too high", divergence, lr=lower)
    dead = start.first_dead()
    if dead is not None and start.logits < FLAT_LOGITS:
        return Cause("dead units", f"the units of {dead} have been 0 for all images since the start")
    if state.change < FROZEN_STEP and not state.warming_up:
        factor = _power_of_ten(GOOD_STEP / state.change) if state.change else 1e4
        measured = (
            f"a step changes the weights by {state.change:.0e} of their size, at a learning rate of {state.lr:.2g}"
        )
        return Cause("learning rate too low", measured, lr=state.lr * factor)
    if start.logits < FLAT_LOGITS:
        layer = start.first_without_spread(FLAT_LAYER)
        where = "" if layer is None else f", and from {layer} on the activations by under {FLAT_LAYER:.0%}"
        measured = f"at the start the logits differed between images by {start.logits:.0e}{where}"
        return Cause("vanishing signal", f"{measured}; now the logits differ by {now.logits:.0e}")
    dead = now.first_dead()
    if dead is not None and now.logits < FLAT_LOGITS:
        return Cause("dead units", f"the units of {dead} are 0 for all images", lr=lower)
    if now.logits < min(FLAT_LOGITS, LOST * start.logits):
        measured = f"the logits differ between images by {now.logits:.0e}, at the start by {start.logits:.0e}"
        return Cause("lost signal", measured, lr=lower)
    return _dying_units(state, lower)


def _dying_units(state: State, lr: float) -> Cause | None:
    """Return the first layer most of whose units have died, or None."""
    before = {layer.name: layer.dead for layer in state.start.layers}
    for layer in state.now.layers:
        if layer.dead > DYING and before.get(layer.name, 1.0) < ALIVE:
            now, start = f"{layer.dead:.0%}", f"{before[layer.name]:.0%}"
            measured = f"{now} of the units of {layer.name} are 0 for all images, at the start {start}"
            return Cause(DYING_UNITS, measured, lr=lr)
    return None


def _power_of_ten(value: float) -> float:
    return 10.0 ** round(math.log10(value))


def _divergence(state: State) -> str | None:
    """Return how the weights or the logits have blown up, or None."""
    growth, name = state.growth
    if growth > BLOWN_UP:
        return f"{name} is {growth:.0f} times as large as at the start"
    if state.loss > WORSE_THAN_GUESSING * state.guessing and state.now.size > state.start.size:
        return f"the logits have grown from {state.start.size:.2g} to {state.now.size:.2g}"
    return None


def describe(state: State, model: Mapping[str, Any]) -> tuple[bool, str] | None:
    """Return whether a cause was measured, and a sentence about a loss that does not fall or units that die, or None.

    Args:
        state: state of the training.
        model: the config node of the net.
    """
    finding = find_cause(state)
    if finding is not None and finding.cause == DYING_UNITS and not state.is_stalled:
        text = f"after {state.num_steps} steps {finding.measured}; {finding.advice(model)}"
        return True, f"{text}. debug=doctor compares the remedies"
    loss = f"after {state.num_steps} steps the loss is "
    if state.loss > WORSE_THAN_GUESSING * state.guessing:
        loss += f"{state.loss:.4g}, worse than guessing among {state.num_classes} classes ({state.guessing:.3f})"
    else:
        loss += f"still {state.loss:.3f}, no better than guessing among {state.num_classes} classes"
    if finding is not None:
        return True, f"{loss}: {finding.measured}; {finding.advice(model)}. debug=doctor compares the remedies"
    if state.is_stalled and state.images_per_class >= MIN_IMAGES_PER_CLASS:
        return (
            False,
            f"{loss}; activations and weights show no cause; the run may need more steps, and debug=doctor compares remedies",
        )
    return None


def describe_dead_outputs(lowest: Tensor, highest: Tensor, classes: Sequence[str], num_images: int) -> str | None:
    """Return a sentence about the classes whose logit does not depend on the image, or None.

    A ReLU behind the last layer, as in NiN and SqueezeNet, can hold a logit at 0. If no logit depends on the image, the loss
    is that of guessing, which `describe` reports.

    Args:
        lowest, highest: smallest and largest logit of each class (K,).
        classes: names of the K classes.
        num_images: number of images that they are from.
    """
    if num_images < MIN_SCORED_PER_CLASS * len(classes):
        return None
    dead = [name for name, constant in zip(classes, (lowest == highest).tolist(), strict=True) if constant]
    if not dead or len(dead) == len(classes) or len(classes) == 2:
        return None
    return (
        f"{len(dead)} of {len(classes)} outputs of the net are dead, the same for {num_images:,} validation images: "
        f"{listed(dead)}; try another seed or a lower optimizer.lr"
    )


def guessing_loss(loss: Callable[[Tensor, Tensor], Tensor], class_counts: Sequence[int], labels: Tensor) -> float:
    """Return the mean loss of the better of two predictions that are the same for all images, over some labels.

    One predicts all classes alike, the other is the best one for the training split: the class frequencies, weighted and
    smoothed like the targets of the loss.

    Args:
        loss: maps logits (N, K) and labels (N,) to losses (N,).
        class_counts: number of training images of each class, or their weights in a sampler.
        labels: labels to average over (M,), so that their random frequencies do not matter; negative ones are left out.
    """
    counts = torch.tensor(class_counts, dtype=torch.float, device=labels.device)
    weights, smoothing = (loss.weights, loss.label_smoothing) if isinstance(loss, CrossEntropy) else (None, 0.0)
    targets = counts if weights is None else counts * weights
    targets = (1 - smoothing) * targets / targets.sum() + smoothing / len(counts)
    classes, numbers = labels[labels >= 0].unique(return_counts=True)
    means = []
    for logits in (torch.zeros_like(targets), targets.clamp(min=1e-9).log()):
        losses = [loss(logits.expand(len(part), -1), part).float() for part in classes.split(CHUNK)]
        means.append((torch.cat(losses) * numbers).sum().item() / max(1, numbers.sum().item()))
    return min(means)
