"""Writing of the splits of a dataset as shards, in the format of `alexlab.data.streaming.index`."""

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexlab.data.image_file import DEFAULT_DECODING, FORMATS, Decoding, read_image, unreadable
from alexlab.data.paths import PathArray
from alexlab.data.splits import Splits
from alexlab.data.streaming.index import INDEX, KIND, VERSION
from alexlab.data.streaming.reader import Shard
from alexlab.data.streaming.shard_layout import ShardLayout, lay_out
from alexlab.data.streaming.store import Store, check_location, is_url
from alexlab.distributed.hardware import num_cores
from alexlab.errors import ConfigError, DataError
from alexlab.output.escape import shown
from alexlab.output.progress import progress_bar
from alexlab.records.atomic import atomic_path
from alexlab.records.disk_errors import disk_error


def write_shards(
    splits: Splits,
    out: str,
    *,
    shard_bytes: int,
    cache_dir: Path,
    decoding: Decoding = DEFAULT_DECODING,
    skip: bool = False,
    manifest: str | None = None,
) -> dict[str, Any]:
    """Write the shards, resuming an interrupted call. The index is written last; its presence marks a complete dataset.

    Training images are written in a fixed random order, so that a few shards at a time are a fair sample of all.

    Args:
        splits: image files.
        out: folder, or URL of a prefix in an object store.
        shard_bytes: approximate size of a shard.
        cache_dir: folder of the progress of an interrupted call and of files to upload.
        decoding: decoding settings, for the limit of the file size.
        skip: leave out files that are missing, empty, too large or not regular.
        manifest: manifest that lists the files, if one does.

    Returns:
        The index.

    Raises:
        ConfigError: if `out` has an index already.
        DataError: if a file is unreadable, a file outside of the folder of the manifest is not an image, or a shard cannot be
            uploaded.
    """
    check_location(out, "out")
    store = Store(out, cache_dir, limit=sys.maxsize)
    _check_new(store)
    layouts = [lay_out(name, split, shard_bytes, decoding, skip) for name, split in splits.items()]
    index = _Writer(store, splits.classes, layouts, decoding, manifest).run(list(splits.notes))
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
    raise ConfigError(f"out must be a new location; {store.location(INDEX)} exists")


class _Writer:
    """Writer of the shards of all splits, on all cores, with a record of the finished ones."""

    def __init__(
        self,
        store: Store,
        classes: Sequence[str],
        layouts: Sequence[ShardLayout],
        decoding: Decoding,
        manifest: str | None,
    ) -> None:
        self.store, self.classes, self.layouts, self.decoding = store, classes, layouts, decoding
        self.manifest_folder = None if manifest is None else os.path.realpath(os.path.dirname(manifest))
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            if not is_url(store.url):
                Path(store.url).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, Path(store.url)) or DataError(
                f"cannot write {shown(store.url)}: {error.strerror}"
            ) from error
        self.progress_path = store.folder.parent / "shards.jsonl"
        self.tables = {layout.name: _table(layout) for layout in layouts}
        self.done = self._finished_shards()

    def _finished_shards(self) -> dict[str, Shard]:
        """Return the shards that an interrupted call for the same files has written and that still exist."""
        digest = hashlib.sha256(b"".join(table for table in self.tables.values()))
        for layout in self.layouts:
            digest.update(layout.states.tobytes())
        digest.update(json.dumps([list(self.classes), *(list(layout.ends) for layout in self.layouts)]).encode())
        try:
            recorded, *lines = self.progress_path.read_text().splitlines()
            if recorded == digest.hexdigest():
                sizes = self.store.sizes()
                shards = [Shard(*json.loads(line)) for line in lines]
                return {shard.name: shard for shard in shards if sizes.get(shard.name) == shard.size}
        except (OSError, ValueError, TypeError):
            pass
        self.progress_path.write_text(digest.hexdigest() + "\n")
        return {}

    def run(self, notes: Sequence[str]) -> dict[str, Any]:
        """Write the shards that are not done, the tables and the index."""
        self._write_all()
        index: dict[str, Any] = {
            "kind": KIND,
            "version": VERSION,
            "classes": list(self.classes),
            "notes": notes,
            "splits": {},
        }
        for layout in self.layouts:
            table = self._store_file(f"{layout.name}.npz", self.tables[layout.name])
            shards = [(self.done[name], len(span)) for name, span in layout.shards()]
            index["splits"][layout.name] = {
                "table": [table.name, table.size, table.sha256],
                "shards": [[shard.name, shard.size, shard.sha256, count] for shard, count in shards],
            }
        self._store_file(INDEX, (json.dumps(index) + "\n").encode())
        self.progress_path.unlink()
        return index

    def _write_all(self) -> None:
        work = [(layout, name, span) for layout in self.layouts for name, span in layout.shards()]
        with progress_bar() as bar, self.progress_path.open("a") as progress:
            task = bar.add_task("writing shards", total=sum(len(span) for _, _, span in work))
            with ThreadPoolExecutor(num_cores()) as pool:
                pending = [(name, span, pool.submit(self._write, layout, name, span)) for layout, name, span in work]
                try:
                    for name, span, future in pending:
                        shard = self.done[name] = future.result()
                        progress.write(json.dumps([shard.name, shard.size, shard.sha256]) + "\n")
                        progress.flush()
                        bar.advance(task, len(span))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def _write(self, layout: ShardLayout, name: str, span: range) -> Shard:
        if name in self.done:
            return self.done[name]
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number in span:
                row = int(layout.rows[number])
                image = self._read(layout, number, row)
                assert tar.offset + tarfile.BLOCKSIZE == layout.starts[number]
                key = f"{row:09d}"
                _add(tar, key + os.path.splitext(layout.split.paths[row])[1].lower(), image)
                _add(tar, f"{key}.cls", str(layout.split.labels[row]).encode())
        return self._store_file(name, content.getvalue())

    def _read(self, layout: ShardLayout, number: int, row: int) -> bytes:
        path = layout.split.file_path(row)
        image = read_image(path, self.decoding)
        if len(image) != layout.lengths[number]:
            raise DataError(f"{shown(path)} changed while the shards were being written; run the command again")
        if self.manifest_folder is not None and not Path(path).resolve().is_relative_to(self.manifest_folder):
            _check_image(image, path, self.manifest_folder)
        if layout.split.sha256(row) not in (None, hashlib.sha256(image).digest()):
            raise unreadable(path, "changed")
        return image

    def _store_file(self, name: str, content: bytes) -> Shard:
        local = not is_url(self.store.url)
        path = (Path(self.store.url) if local else self.store.folder) / name
        try:
            if local:
                with atomic_path(path) as partial:
                    partial.write_bytes(content)
            else:
                upload = path.with_name(f".{name}.{os.getpid()}")
                try:
                    upload.write_bytes(content)
                    self.store.put(upload, name)
                finally:
                    upload.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, path) or DataError(
                f"cannot write {shown(self.store.location(name))}: {error.strerror}"
            ) from error
        return Shard(name, len(content), hashlib.sha256(content).hexdigest())


def _check_image(content: bytes, path: str, folder: str) -> None:
    """Raise DataError unless the content is an image. Manifests are untrusted and shards may be public, so a manifest must
    not be able to copy other files into them."""
    try:
        Image.open(io.BytesIO(content), formats=FORMATS).close()
    except Exception as error:  # corrupt files can raise anything
        raise DataError(
            f"only images may be copied from outside of {shown(folder)}, the folder of the manifest; {shown(path)} is not one"
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
