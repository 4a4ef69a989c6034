"""Writes the splits of a data set as shards; see `alexlab.data.streaming.reader`. Imports no torch."""

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexlab.data.image_file import DEFAULT_DECODING, FORMATS, Decoding, open_image, read_image, unreadable
from alexlab.data.paths import PathArray
from alexlab.data.splits import Split, Splits
from alexlab.data.streaming.reader import INDEX, KIND, VERSION, Shard
from alexlab.data.streaming.store import Store, check_location, is_url
from alexlab.distributed.hardware import num_cores
from alexlab.errors import ConfigError, DataError
from alexlab.output.escape import shown
from alexlab.output.progress import progress_bar
from alexlab.runs.disk_errors import disk_error

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardLayout:
    """Where the images of one split will lie.

    Args:
        name, split: the split.
        rows: its images in the order in which they are written.
        states: of their files, int64 (N, 3), see `Split.state`.
        starts: of each file in its shard, int64.
        ends: number of the first image of each shard but the first, and of all images.
    """

    name: str
    split: Split
    rows: np.ndarray
    states: np.ndarray
    starts: np.ndarray
    ends: Sequence[int]

    @property
    def lengths(self) -> np.ndarray:
        """The bytes of each file, int64."""
        return np.asarray(self.states[:, 0])

    def shards(self) -> list[tuple[str, range]]:
        """The name of each shard and the numbers of its images."""
        starts = [0, *self.ends[:-1]]
        spans = [range(start, end) for start, end in zip(starts, self.ends, strict=True)]
        return [(f"{self.name}-{number:06d}.tar", span) for number, span in enumerate(spans)]


def write_shards(
    splits: Splits,
    out: str,
    *,
    shard_bytes: int,
    cache_dir: Path,
    decoding: Decoding = DEFAULT_DECODING,
    skip: bool = False,
) -> dict[str, Any]:
    """Writes `out`; one that was ended in the middle is gone on with. The index comes last: without it there is no data set.

    Training images are written in a random order, always the same, so that few shards at a time are a fair sample of all.

    Args:
        splits: the files.
        out: a folder, or the URL of a prefix of an object store.
        shard_bytes: of a shard, about.
        cache_dir: where is kept what was done, and what is on its way.
        decoding: the settings, of which the size of a file is limited.
        skip: leave files out that are missing, empty, too large or not regular.

    Returns:
        The index.

    Raises:
        ConfigError: when there are shards already.
        DataError: when a file cannot be read, or the store does not take a shard.
    """
    check_location(out, "out")
    store = Store(out, cache_dir, limit=sys.maxsize)
    _check_new(store)
    layouts = [_layout(name, split, shard_bytes, decoding, skip) for name, split in splits.items()]
    writer = _Writer(store, splits.classes, layouts, cache_dir, decoding)
    index = writer.run(list(splits.notes))
    store.close()
    return index


def _check_new(store: Store) -> None:
    try:
        if is_url(store.url):
            store.get(INDEX, INDEX)
        elif not Path(store.url, INDEX).exists():
            return
    except DataError:
        return
    raise ConfigError(f"out must be a new place; {store.place(INDEX)} is there already")


def _layout(name: str, split: Split, shard_bytes: int, decoding: Decoding, skip: bool) -> ShardLayout:
    rows = np.arange(len(split))
    if name == "train":
        rows = np.random.Generator(np.random.Philox(0)).permutation(rows)
    states = np.array([split.file_state(row) for row in rows.tolist()], np.int64).reshape(-1, 3)
    lengths = states[:, 0]
    fits = (lengths > 0) & (lengths <= decoding.max_bytes)
    if not fits.all():
        if not skip:
            place = split.file_path(int(rows[~fits][0]))
            open_image(place, decoding).close()  # raises, with the reason
            raise DataError(f"{shown(place)} has changed while the shards were written")
        rows, states, lengths = rows[fits], states[fits], lengths[fits]
    label_bytes = 2 * BLOCK  # a header, and a number of a few digits
    sizes = BLOCK + -(-lengths // BLOCK) * BLOCK + label_bytes
    starts, ends, filled = np.zeros(len(rows), np.int64), [], 0
    for number, size in enumerate(sizes.tolist()):
        if filled and filled + size > shard_bytes:
            ends.append(number)
            filled = 0
        starts[number] = filled + BLOCK
        filled += size
    return ShardLayout(name, split, rows, states, starts, [*ends, len(rows)])


class _Writer:
    """Writes the shards of some layouts, on all cores, and remembers which are done."""

    def __init__(
        self, store: Store, classes: Sequence[str], layouts: Sequence[ShardLayout], cache_dir: Path, decoding: Decoding
    ) -> None:
        self.store, self.classes, self.layouts, self.decoding = store, classes, layouts, decoding
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            if not is_url(store.url):
                Path(store.url).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, Path(store.url)) or DataError(
                f"cannot write {shown(store.url)}: {error.strerror}"
            ) from error
        self.progress = store.folder.parent / "shards.jsonl"
        self.tables = {layout.name: _table(layout) for layout in layouts}
        self.done = self._done()

    def _done(self) -> dict[str, Shard]:
        """What an earlier call has written of the same, and that is still there."""
        what = hashlib.sha256(b"".join(table for table in self.tables.values()))
        for layout in self.layouts:
            what.update(layout.states.tobytes())
        what.update(json.dumps([list(self.classes), *(list(layout.ends) for layout in self.layouts)]).encode())
        try:
            first, *lines = self.progress.read_text().splitlines()
            if first == what.hexdigest():
                sizes = self.store.sizes()
                known = [Shard(*json.loads(line)) for line in lines]
                return {shard.name: shard for shard in known if sizes.get(shard.name) == shard.size}
        except (OSError, ValueError, TypeError):
            pass
        self.progress.write_text(what.hexdigest() + "\n")
        return {}

    def run(self, notes: Sequence[str]) -> dict[str, Any]:
        work = [(layout, name, span) for layout in self.layouts for name, span in layout.shards()]
        with progress_bar() as bar, self.progress.open("a") as done:
            task = bar.add_task("writing shards", total=sum(len(span) for _, _, span in work))
            with ThreadPoolExecutor(num_cores()) as pool:
                pending = [(name, span, pool.submit(self._write, layout, name, span)) for layout, name, span in work]
                try:
                    for name, span, future in pending:
                        self.done[name] = future.result()
                        done.write(json.dumps([name, self.done[name].size, self.done[name].sha256]) + "\n")
                        done.flush()
                        bar.advance(task, len(span))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        index: dict[str, Any] = {
            "kind": KIND,
            "version": VERSION,
            "classes": list(self.classes),
            "notes": notes,
            "splits": {},
        }
        for layout in self.layouts:
            table = self._keep(f"{layout.name}.npz", self.tables[layout.name])
            index["splits"][layout.name] = {
                "table": [table.name, table.size, table.sha256],
                "shards": [
                    [name, self.done[name].size, self.done[name].sha256, len(span)] for name, span in layout.shards()
                ],
            }
        self._keep(INDEX, (json.dumps(index) + "\n").encode())
        self.progress.unlink()
        return index

    def _write(self, layout: ShardLayout, name: str, span: range) -> Shard:
        if name in self.done:
            return self.done[name]
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number in span:
                row = int(layout.rows[number])
                image = self._image(layout, number, row)
                assert tar.offset + BLOCK == layout.starts[number]
                key = f"{row:09d}"
                _add(tar, key + os.path.splitext(layout.split.paths[row])[1].lower(), image)
                _add(tar, f"{key}.cls", str(layout.split.labels[row]).encode())
        return self._keep(name, content.getvalue())

    def _image(self, layout: ShardLayout, number: int, row: int) -> bytes:
        place = layout.split.file_path(row)
        image = read_image(place, self.decoding)
        if len(image) != layout.lengths[number]:
            raise DataError(f"{shown(place)} has changed while the shards were written")
        if os.path.normpath(layout.split.paths[row]).startswith(("/", "..")):
            _check_image(image, place, layout.split.root)
        hashes = layout.split.hashes
        if hashes is not None and hashlib.sha256(image).digest() != hashes[row].tobytes():
            raise unreadable(place, "changed")
        return image

    def _keep(self, name: str, content: bytes) -> Shard:
        folder = self.store.folder if is_url(self.store.url) else Path(self.store.url)
        unfinished = folder / f".{name}.{os.getpid()}"
        try:
            unfinished.write_bytes(content)
            if is_url(self.store.url):
                self.store.put(unfinished, name)
            else:
                os.replace(unfinished, folder / name)
        except OSError as error:
            raise disk_error(error, folder / name) or DataError(
                f"cannot write {shown(self.store.place(name))}: {error.strerror}"
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)
        return Shard(name, len(content), hashlib.sha256(content).hexdigest())


def _check_image(content: bytes, place: str, root: str) -> None:
    """Raises DataError unless it is an image: a manifest may come from a stranger, and shards be for others to see."""
    try:
        Image.open(io.BytesIO(content), formats=FORMATS).close()
    except Exception as error:  # damaged files make decoders fail in every way
        raise DataError(
            f"only images are copied from outside of {shown(root)}, where the manifest is; {shown(place)} is none"
        ) from error


def _table(layout: ShardLayout) -> bytes:
    paths = PathArray.from_list([layout.split.paths[row] for row in layout.rows.tolist()])
    content = io.BytesIO()
    np.savez_compressed(
        content,
        labels=layout.split.labels[layout.rows],
        paths=paths.block,
        starts=layout.starts,
        lengths=layout.lengths,
    )
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
