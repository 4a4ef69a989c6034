"""Every dataset, from small files in its original format that the test creates."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from alexlab.data.discovery import find_splits
from alexlab.data.sources import downloads
from alexlab.data.sources.downloads import DATASETS, download_dataset
from alexlab.errors import ConfigError, DataError
from support.runs import plain

GENERATOR = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def jpeg(size: int = 20) -> bytes:
    file = io.BytesIO()
    Image.fromarray(GENERATOR.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_mnist(kind: Any, root: Path, patch: pytest.MonkeyPatch) -> None:
    raw = root / kind.__name__ / "raw"
    raw.mkdir(parents=True)
    resources = []
    for name, _ in kind.resources:
        count = 20 if name.startswith("train") else 10
        labels = np.arange(count, dtype=np.uint8) % 10
        header = struct.pack(">iiii", 0x803, count, 28, 28) if "idx3" in name else struct.pack(">ii", 0x801, count)
        pixels = np.repeat(labels, 784) * 20
        with gzip.open(raw / name, "wb") as file:
            file.write(header + (pixels.tobytes() if "idx3" in name else labels.tobytes()))
        resources.append((name, md5(raw / name)))
    patch.setattr(kind, "resources", resources)


def make_cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    kind = datasets.CIFAR10
    members = {}
    for name, _ in [*kind.train_list, *kind.test_list]:
        batch = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
        members[f"{kind.base_folder}/{name}"] = pickle.dumps(batch)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    members[f"{kind.base_folder}/{kind.meta['filename']}"] = pickle.dumps({kind.meta["key"]: names})
    patch.setattr(kind, "tgz_md5", md5(tar(root / kind.filename, members)))

    def sums(entries: Any) -> list[list[str]]:
        return [[name, hashlib.md5(members[f"{kind.base_folder}/{name}"]).hexdigest()] for name, _ in entries]

    patch.setattr(kind, "train_list", sums(kind.train_list))
    patch.setattr(kind, "test_list", sums(kind.test_list))
    patch.setattr(kind, "meta", {**kind.meta, "md5": sums([(kind.meta["filename"], "")])[0][1]})


def make_stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    kind = datasets.STL10
    labels = bytes(range(1, 11)) * 2
    contents = {"X.bin": bytes(20 * 3 * 96 * 96), "y.bin": labels}
    members = {
        f"{kind.base_folder}/{name}": contents[name.split("_")[1]] for name, _ in [*kind.train_list, *kind.test_list]
    }
    members[f"{kind.base_folder}/{kind.class_names_file}"] = b"\n".join(b"class%d" % number for number in range(10))
    members[f"{kind.base_folder}/{kind.folds_list_file}"] = b"0 1 2\n"
    patch.setattr(kind, "tgz_md5", md5(tar(root / kind.filename, members)))
    for name in ("train_list", "test_list"):
        entries = getattr(kind, name)
        patch.setattr(kind, name, [[file, hashlib.md5(members[f"{kind.base_folder}/{file}"]).hexdigest()] for file, _ in entries])  # fmt: skip


def make_flowers(root: Path, patch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    folder = root / "flowers-102"
    members = {f"jpg/image_{number:05d}.jpg": jpeg() for number in range(1, 307)}
    tar(folder / "102flowers.tgz", members)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(306) % 102 + 1})
    ids = np.arange(1, 307)
    savemat(folder / "setid.mat", {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})
    names = {key: name for key, (name, _) in datasets.Flowers102._file_dict.items()}
    patch.setattr(datasets.Flowers102, "_file_dict", {key: (name, md5(folder / name)) for key, name in names.items()})


def make_pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    names = [f"{breed}_{number}" for breed in ("Abyssinian", "great_pyrenees") for number in (1, 2, 3)]
    tar(folder / "images.tar.gz", {f"images/{name}.jpg": jpeg() for name in names})
    lines = [f"{name} {1 if name.startswith('Abys') else 2} 1 1" for name in names]
    lists = {"trainval": [lines[0], lines[1], lines[3], lines[4]], "test": [lines[2], lines[5]]}
    tar(folder / "annotations.tar.gz", {f"annotations/{name}.txt": "\n".join(rows).encode() for name, rows in lists.items()})  # fmt: skip
    kind = datasets.OxfordIIITPet
    patch.setattr(kind, "_RESOURCES", [(url, md5(folder / url.rsplit("/", 1)[-1])) for url, _ in kind._RESOURCES])


def make_imagenette(size: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    kind = datasets.Imagenette
    url, _ = kind._ARCHIVES[size]
    stem = Path(url).stem
    members = {
        f"{stem}/{split}/{wnid}/{wnid}_{number}.JPEG": jpeg()
        for split in ("train", "val")
        for wnid in kind._WNID_TO_CLASS
        for number in range(2)
    }
    path = tar(root / f"{stem}.tgz", members)
    patch.setattr(kind, "_ARCHIVES", {**kind._ARCHIVES, size: (url, md5(path))})


MAKERS: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], dict[str, int], set[str]]] = {
    "mnist": (lambda *to: make_mnist(datasets.MNIST, *to), {"train": 20, "test": 10}, set("0123456789")),
    "fashion_mnist": (
        lambda *to: make_mnist(datasets.FashionMNIST, *to),
        {"train": 20, "test": 10},
        {"T-shirt-top", "Ankle boot"},
    ),
    "cifar10": (make_cifar10, {"train": 50, "test": 10}, {"airplane", "truck"}),
    "stl10": (make_stl10, {"train": 20, "test": 20}, {"class0", "class9"}),
    "flowers102": (make_flowers, {"train": 102, "val": 102, "test": 102}, {"pink primrose"}),
    "oxford_pets": (make_pets, {"train": 4, "test": 2}, {"Abyssinian", "Great Pyrenees"}),
    "imagenette": (lambda *to: make_imagenette("full", *to), {"train": 20, "val": 20}, {"tench", "golf ball"}),
    "imagenette_320": (lambda *to: make_imagenette("320px", *to), {"train": 20, "val": 20}, {"tench"}),
    "imagenette_160": (lambda *to: make_imagenette("160px", *to), {"train": 20, "val": 20}, {"church"}),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, *args: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fail)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **options: url)


def test_every_data_set_has_a_test() -> None:
    assert set(MAKERS) == set(DATASETS)


@pytest.mark.parametrize("name", MAKERS)
def test_written_from_the_original_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, counts, classes = MAKERS[name]
    make(tmp_path / "downloads", monkeypatch)
    source = DATASETS[name]
    monkeypatch.setitem(downloads.DATASETS, name, replace(source, counts=counts))
    out = tmp_path / "out"
    assert download_dataset(name, out, tmp_path / "downloads") == counts
    assert {path.name for path in out.iterdir()} == set(counts)
    for split, count in counts.items():
        files = [path for path in (out / split).rglob("*") if path.is_file()]
        assert len(files) == count
        assert classes <= {path.name for path in (out / split).iterdir()}
        with Image.open(files[0]) as image:
            image.load()
    splits = find_splits(str(out), val_fraction=0.5, test_fraction=0.0)
    assert len(splits.train) + len(splits.val) + len(splits.test or ()) == sum(counts.values())
    assert not (tmp_path / "downloads/out").exists()
    with pytest.raises(ConfigError, match="out must be a new folder"):
        download_dataset(name, out, tmp_path / "downloads")


def test_images_are_in_the_folder_of_their_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, counts, _ = MAKERS["mnist"]
    make(tmp_path / "downloads", monkeypatch)
    monkeypatch.setitem(downloads.DATASETS, "mnist", replace(DATASETS["mnist"], counts=counts))  # fmt: skip
    download_dataset("mnist", tmp_path / "out", tmp_path / "downloads")
    for path in (tmp_path / "out").rglob("*.png"):
        assert (np.asarray(Image.open(path)) == 20 * int(path.parent.name)).all()


@pytest.mark.parametrize("name", DATASETS)
def test_a_failed_download_names_data_set_folder_and_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        download_dataset(name, tmp_path / "out", tmp_path / "downloads")
    message = str(caught.value)
    assert message.startswith(f"cannot download {name} to {tmp_path / 'downloads'}: ")
    assert "no network" in message and "\n" not in message
    assert message.endswith("network access, or copy this folder from a machine on which it has succeeded")
    assert not (tmp_path / "out").exists()


def test_an_incomplete_data_set_is_detected_by_its_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_imagenette("160px", tmp_path, monkeypatch)
    with pytest.raises(
        DataError, match=r"imagenette_160 must have 9469 train images; .* holds 20. Remove its files there"
    ):
        download_dataset("imagenette_160", tmp_path / "out", tmp_path)


def test_a_corrupt_archive_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the second download fails, as there is no network."""
    make_imagenette("160px", tmp_path, monkeypatch)
    archive = tmp_path / "imagenette2-160.tgz"
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot download imagenette_160 to .*no network"):
        download_dataset("imagenette_160", tmp_path / "out", tmp_path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from alexlab.records.run import Run
    from alexlab.tasks.prepare import main

    make, counts, _ = MAKERS["oxford_pets"]
    make(tmp_path / "d", monkeypatch)
    source = DATASETS["oxford_pets"]
    monkeypatch.setitem(downloads.DATASETS, "oxford_pets", replace(source, counts=counts))
    config = plain("dataset=oxford_pets", f"downloads={tmp_path / 'd'}", f"out={tmp_path / 'out'}", name="prepare")
    main(Run(config=config, dir=tmp_path))
    assert f"alexlab train data.root={tmp_path / 'out'}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"dataset must be one of mnist, fashion_mnist, .*; got 'imagenet'"):
        main(Run(config={**config, "dataset": "imagenet"}, dir=tmp_path))
