"""Whether losses and gradients stay finite, without making the host wait for the device at each step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Found:
    """A value that is not finite.

    Args:
        name: of the value.
        value: itself.
        step: optimizer step.
        batch_idx: batch of this rank in its epoch.
        batches: how many batches up to that one may be the cause.
    """

    name: str
    value: float
    step: int
    batch_idx: int
    batches: int


class Watch:
    """Notes the first value that is not finite where the value is, and tells it when it is asked.

    To ask makes the host wait until the device has done everything that it was given; on the CPU it costs nothing.
    """

    def __init__(self) -> None:
        self.notes: list[tuple[Sequence[str], int, int, int]] = []
        self.first: Tensor | None = None  # number of the note, place in it, value; -1 as long as there is none

    def note(self, names: Sequence[str], values: Tensor, *, step: int, batch_idx: int, batches: int = 1) -> None:
        """Looks at values (P,) on their device.

        Args:
            names: of the values, P.
            values: on any device.
            step, batch_idx, batches: see `Found`.
        """
        values = values.detach().double()
        if self.first is None:
            self.first = torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64).to(values.device, non_blocking=True)
        bad = ~torch.isfinite(values)
        place = bad.int().argmax().view(1)
        number = torch.full_like(values[:1], len(self.notes))
        entry = torch.cat([number, place.double(), values.index_select(0, place)])
        self.first = torch.where(bad.any() & (self.first[0] < 0), entry, self.first)
        self.notes.append((names, step, batch_idx, batches))

    def ask(self) -> Found | None:
        """The first value since the last time that was not finite; forgets everything."""
        if self.first is None:
            return None
        number, place, value = self.first.tolist()
        notes, self.notes, self.first = self.notes, [], None
        if number < 0:
            return None
        names, step, batch_idx, batches = notes[int(number)]
        return Found(names[int(place)], value, step, batch_idx, batches)


def asked_at_each_step(device: torch.device) -> bool:
    """Whether to ask costs nothing there."""
    return device.type == "cpu"
