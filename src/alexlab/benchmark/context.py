"""What a suite is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from alexlab.benchmark.config import Settings
from alexlab.benchmark.interleave import Contender, Figures, contest, repeated
from alexlab.benchmark.roofline import CEILING, multiply
from alexlab.config import build
from alexlab.config.instantiate import Config
from alexlab.data.splits import Splits
from alexlab.data.streaming.reader import SPARE
from alexlab.data.streaming.writer import write_shards

SHARD_BYTES = 2_000_000  # small, as the data that is measured on is
MIX = 8  # shards


@dataclass(frozen=True)
class Measuring:
    """One run of the benchmark.

    Args:
        config: of `train.py`, on the images that are measured on.
        choices: the option chosen in each config group.
        words: the command line's words that `train.py` takes too.
        settings: how much is measured.
        splits: the data, packed where the config wants it.
        device: `cpu` or `cuda`.
        ranks: processes of a training.
        out: the folder that is written to.
        peer: another program's command line, or None.
    """

    config: Config
    choices: Mapping[str, str]
    words: Sequence[str]
    settings: Settings
    splits: Splits
    device: str
    ranks: int
    out: Path
    peer: str | None = None

    @property
    def label(self) -> str:
        """The net and where its images come from."""
        cache = self.config["data"]["cache"]
        return f"{self.choices.get('model', 'net')}, {'JPEG' if cache is None else cache}"

    @property
    def bfloat16(self) -> bool:
        """Whether the training computes in it."""
        return bool(self.config["trainer"]["precision"] == "bf16-mixed")

    def contest(
        self, contenders: Sequence[Contender], title: str, *, ceiling: bool = False
    ) -> dict[str, list[Figures]]:
        """See `alexlab.benchmark.interleave.contest`.

        Args:
            contenders, title: as there.
            ceiling: matrix products in the training's precision take part, under the name CEILING, so that `share` can compare.
        """
        if ceiling:
            kind = torch.bfloat16 if self.bfloat16 else torch.float32
            contenders = [*contenders, Contender(CEILING, repeated(multiply, kind, self.device))]
        return contest(contenders, rounds=self.settings.pairs, log_dir=self.out / "logs", title=title)

    def unpacked(self) -> "Measuring":
        """The same on the files."""
        config = {**self.config, "data": {**self.config["data"], "cache": None}}
        return replace(self, config=config, splits=build.data(config).find_splits())

    def sharded(self) -> "Measuring":
        """The same from shards, in a cache that holds a part of them: each pass fetches, or checks, most of them again."""
        files = self.unpacked()
        out = self.settings.shards or str(self.out / "shards")
        cache_dir = Path(files.config["data"]["cache_dir"])
        decoding = build.data(files.config).decoding
        index = write_shards(files.splits, out, shard_bytes=SHARD_BYTES, cache_dir=cache_dir, decoding=decoding)
        largest = max(size for about in index["splits"].values() for _, size, _, _ in about["shards"])
        stream = {
            "shuffle_shards": MIX,
            "prefetch_shards": MIX // 2,
            "cache_gb": (MIX + MIX // 2 + SPARE) * largest / 1e9,
        }
        data = {**files.config["data"], "root": None, "url": out, "stream": stream}
        config = {**files.config, "data": data}
        return replace(files, config=config, splits=build.data(config).find_splits())

    def packed(self) -> "Measuring":
        """The same on packed images."""
        config = {**self.config, "data": {**self.config["data"], "cache": "packed"}}
        return replace(self, config=config, splits=build.packed(config, build.data(config).find_splits()))
