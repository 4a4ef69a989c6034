"""Arguments passed to every suite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alexlab.benchmark.config import BenchmarkConfig
from alexlab.benchmark.interleave import Candidate, Figures, interleave, loop
from alexlab.benchmark.roofline import CEILING, matrix_products
from alexlab.benchmark.workload import Workload
from alexlab.config import build_data
from alexlab.config.data import data_config
from alexlab.config.instantiate import Config
from alexlab.data.splits import Splits
from alexlab.data.streaming.index import SPARE_SHARDS
from alexlab.data.streaming.writer import write_shards
from alexlab.records.run import Run

SHARD_BYTES = 2_000_000  # small, so that the measured subset exceeds a cache of MIX shards
MIX = 8  # shards


@dataclass(frozen=True)
class BenchmarkContext:
    """One run of the benchmark.

    Args:
        config: resolved config of `train.py`, on the subset of images.
        choices: option chosen in each config group.
        overrides: overrides of the command line that `train.py` accepts too.
        settings: the `benchmark` node.
        splits: the data, packed if the config says so.
        device: `cpu` or `cuda`.
        num_ranks: processes of a training.
        out_dir: folder of the results.
        train: the task of `train.py`.
        peer: command line of another program, or None.
    """

    config: Config
    choices: Mapping[str, str]
    overrides: Sequence[str]
    settings: BenchmarkConfig
    splits: Splits
    device: str
    num_ranks: int
    out_dir: Path
    train: Callable[[Run], Any]
    peer: str | None = None

    @property
    def model(self) -> str:
        """The option of the group `model`."""
        return self.choices.get("model", "net")

    @property
    def label(self) -> str:
        """The net and the source of its images."""
        cache = self.config["data"]["cache"]
        return f"{self.model}, {'JPEG' if cache is None else cache}"

    @property
    def bfloat16(self) -> bool:
        """True if the training computes in bfloat16."""
        return bool(self.config["trainer"]["precision"] == "bf16-mixed")

    def interleave(
        self,
        candidates: Sequence[Candidate],
        title: str,
        *,
        ceiling: bool = False,
        sample: Callable[[int], Figures] | None = None,
    ) -> dict[str, list[Figures]]:
        """Time candidates for `benchmark.pairs` rounds.

        Args:
            candidates, title, sample: arguments of `alexlab.benchmark.interleave.interleave`.
            ceiling: add a candidate CEILING, matrix products in the precision of the training, for `share_of_ceiling`.
        """
        if ceiling:
            dtype = torch.bfloat16 if self.bfloat16 else torch.float32
            candidates = [*candidates, Candidate(CEILING, loop(matrix_products, dtype, self.device))]
        log_dir = self.out_dir / "logs"
        return interleave(candidates, num_rounds=self.settings.pairs, log_dir=log_dir, title=title, sample=sample)

    def workload(self, name: str, num_ranks: int = 1) -> Workload:
        """Return the workload of a candidate, with a run folder of its name."""
        run_dir = self.out_dir / "runs" / f"{name.replace(' ', '_').replace(',', '')}_{num_ranks}"
        return Workload(self.config, self.splits, run_dir, self.train, num_ranks, self.device)

    def on_files(self) -> "BenchmarkContext":
        """Return the same benchmark on image files."""
        config = {**self.config, "data": {**self.config["data"], "cache": None}}
        return replace(self, config=config, splits=data_config(config).find_splits())

    def on_shards(self) -> "BenchmarkContext":
        """Return the same benchmark on shards, with a cache that is too small for all: each pass fetches most of them again."""
        files = self.on_files()
        out = self.settings.shards or str(self.out_dir / "shards")
        cache_dir = Path(files.config["data"]["cache_dir"])
        decoding = data_config(files.config).decoding
        index = write_shards(files.splits, out, shard_bytes=SHARD_BYTES, cache_dir=cache_dir, decoding=decoding)
        largest = max(size for about in index["splits"].values() for _, size, _, _ in about["shards"])
        stream = {
            "shuffle_shards": MIX,
            "prefetch_shards": MIX // 2,
            "cache_gb": (MIX + MIX // 2 + SPARE_SHARDS) * largest / 1e9,
        }
        data = {**files.config["data"], "root": None, "url": out, "stream": stream}
        config = {**files.config, "data": data}
        return replace(files, config=config, splits=data_config(config).find_splits())

    def on_packed(self) -> "BenchmarkContext":
        """Return the same benchmark on packed images."""
        config = {**self.config, "data": {**self.config["data"], "cache": "packed"}}
        return replace(self, config=config, splits=build_data.packed_splits(config, data_config(config).find_splits()))
