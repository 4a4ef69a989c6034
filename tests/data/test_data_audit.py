"""The audit reports every irregularity and nothing else, and changes files only on request."""

import json
import os
import re
import shutil
import signal
import unicodedata
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexlab.data.audit import inspection
from alexlab.data.audit.audit import AuditResult, audit_dataset
from alexlab.data.audit.duplicates import Pair, find_pairs
from alexlab.data.audit.inspection import ImageStats, Inspection
from alexlab.data.audit.quarantine import quarantine, restore
from alexlab.data.audit.report import TITLES
from alexlab.data.discovery import find_splits
from alexlab.data.manifest import ManifestRow, read_manifest
from alexlab.distributed.failures import translate_errors
from alexlab.errors import ConfigError, DataError, FindingsError, ImageError, RankError
from alexlab.output.escape import shown
from alexlab.records.run import Run
from alexlab.tasks.prepare import main
from support.bad_images import READABLE, UNREADABLE, tiff, write_odd_files
from support.runs import plain


def photo(path: Path, seed: int, *, size: tuple[int, int] = (90, 70), quality: int = 90) -> Path:
    """Write an image of large shapes that differs from those of all other seeds."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=quality)
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    root = tmp_path / "clean"
    for number in range(40):
        photo(root / ("train" if number < 28 else "val") / "ab"[number % 2] / f"{number}.jpg", number)
    return root


def entries_of(result: AuditResult) -> list[tuple[str, str]]:
    return [(finding.code, shown(finding.path)) for finding in result.findings]


def test_a_clean_data_set_has_no_findings(clean: Path) -> None:
    result = audit_dataset(str(clean))
    assert entries_of(result) == []
    assert result.notes == []
    assert result.counts == {"train": {"a": 14, "b": 14}, "val": {"a": 6, "b": 6}}
    assert result.sizes == {"90 x 70": 40}
    assert result.modes == {"RGB": 40}
    pixels = [np.asarray(Image.open(path)).reshape(-1, 3) / 255 for path in clean.rglob("*.jpg")]
    mean = np.mean([one.mean(0) for one in pixels], 0)
    assert result.mean == pytest.approx(mean.tolist(), abs=1e-6)
    spread = np.sqrt(np.mean([(one**2).mean(0) for one in pixels], 0) - mean**2)
    assert result.std == pytest.approx(spread.tolist(), abs=1e-5)


def test_every_unusual_file_is_reported_with_its_code(clean: Path) -> None:
    """Unreadable, unsupported and misnamed files, and nothing else."""
    expected = {(f"unreadable_{code}", f"train/a/{name}") for name, code in write_odd_files(clean / "train/a").items()}
    expected |= {("extension", "train/a/png_named.jpg")}
    expected |= {("unsupported_format", f"train/a/{name}") for name in ("animated.gif", "photo.jxl")}  # fmt: skip
    result = audit_dataset(str(clean))
    odd = {entry for entry in entries_of(result) if "duplicate" not in entry[0]}
    assert odd == expected
    readable = {Path(row.path).name for row in result.rows if row.width}
    assert set(READABLE) <= readable
    assert not readable & set(UNREADABLE)
    assert "1 file holds several images; only the first is used" in result.notes
    assert "left out in train: 1 .*, 1 ._*, 1 .xyz file, 1 __MACOSX" in result.notes
    alike = {entry[1] for entry in entries_of(result) if "duplicate" in entry[0]}
    assert alike
    assert all(Path(path).name in READABLE or "not_utf8" in path for path in alike), (
        "the same gradient is in many formats"
    )


def test_reasons_are_those_of_decode(clean: Path) -> None:
    from alexlab.data.decode import decode

    for name in write_odd_files(clean / "train/a"):
        with pytest.raises(ImageError) as caught:
            decode(clean / "train/a" / name)
        finding = next(finding for finding in audit_dataset(str(clean)).findings if finding.path == f"train/a/{name}")
        assert finding.text == f"cannot be read: {caught.value.reason}"


def test_corrupt_images_after_the_first_one_are_ignored(clean: Path) -> None:
    """They are counted to recognize animations, and never read."""
    content = tiff(np.arange(2400, dtype=np.uint8).reshape(40, 60))
    position = len(content) - 4  # the offset of the next image file directory
    (clean / "train/a/stack.tif").write_bytes(content[:position] + b"\xff\xff\xff\x7f")
    result = audit_dataset(str(clean))
    assert not entries_of(result)
    assert "1 file holds several images; only the first is used" in result.notes


def test_irregular_folders_are_reported(clean: Path) -> None:
    photo(clean / "val/c/0.jpg", 100)
    shutil.rmtree(clean / "val/b")
    (clean / "train/empty").mkdir()
    photo(clean / "train/d/0.jpg", 101)
    photo(clean / "train/D/0.jpg", 102)
    first, second = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    photo(clean / "train" / first / "0.jpg", 103)
    photo(clean / "train" / second / "0.jpg", 104)
    (clean / "train/a/loop").symlink_to(clean / "train/a")
    photo(clean / "train/beside.jpg", 105)
    shutil.copytree(clean / "val", clean / "valid")
    result = audit_dataset(str(clean))
    assert sum(result.counts["val"].values()) == 2 * len(list((clean / "val").glob("*/*"))), "val and valid"
    entries = set(entries_of(result))
    assert {
        ("extra_class", "val/c"),
        ("missing_class", "val/b"),
        ("empty_class", "train/empty"),
        ("similar_class", "train/d"),
        ("loop", "train/a/loop"),
        ("outside_classes", "train/beside.jpg"),
        ("unclear_splits", "."),
    } <= entries
    assert ("similar_class", f"train/{max(first, second)}") in entries
    text = next(finding.text for finding in audit_dataset(str(clean)).findings if finding.code == "similar_class")
    assert text == "is a class whose name differs from 'D' only in case or Unicode form"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_folders_without_read_permission_are_reported(clean: Path) -> None:
    (clean / "train/a").chmod(0)
    assert ("no_permission", "train/a") in entries_of(audit_dataset(str(clean)))
    (clean / "train/a").chmod(0o755)


def test_duplicates_within_and_across(clean: Path) -> None:
    shutil.copy(clean / "train/a/0.jpg", clean / "val/a/copy.jpg")
    shutil.copy(clean / "train/a/2.jpg", clean / "train/b/copy.jpg")
    shutil.copy(clean / "train/a/4.jpg", clean / "train/a/copy.jpg")
    with Image.open(clean / "train/a/6.jpg") as image:
        image.resize((60, 47)).save(clean / "val/a/small.jpg", quality=60)
        image.convert("L").save(clean / "train/a/grey.jpg")
    result = audit_dataset(str(clean))
    assert entries_of(result) == [
        ("duplicate", "train/a/copy.jpg"),
        ("duplicate_across_classes", "train/b/copy.jpg"),
        ("duplicate_across_splits", "val/a/copy.jpg"),
        ("near_duplicate", "train/a/grey.jpg"),
        ("near_duplicate_across_splits", "val/a/small.jpg"),
        ("near_duplicate_across_splits", "val/a/small.jpg"),
    ]
    texts = {finding.path: finding.text for finding in result.findings}
    assert texts["val/a/copy.jpg"] == "is the same file as train/a/0.jpg, in another split"
    assert texts["train/b/copy.jpg"] == "is the same file as train/a/2.jpg, in another class"


def test_a_leak_is_found_behind_an_equal_file_of_the_training_split(clean: Path) -> None:
    """train/a/0.jpg is equal to val/a/copy.jpg, and train/a/grey.jpg looks like both."""
    shutil.copy(clean / "train/a/0.jpg", clean / "val/a/copy.jpg")
    with Image.open(clean / "train/a/0.jpg") as image:
        image.convert("L").save(clean / "train/a/grey.jpg")
    found = {(finding.code, finding.path, finding.text) for finding in audit_dataset(str(clean)).findings}
    assert found == {
        ("duplicate_across_splits", "val/a/copy.jpg", "is the same file as train/a/0.jpg, in another split"),
        ("near_duplicate", "train/a/grey.jpg", "looks like train/a/0.jpg"),
        ("near_duplicate_across_splits", "val/a/copy.jpg", "looks like train/a/grey.jpg, in another split"),
    }


def test_leaks_are_found_among_many_similar_images() -> None:
    """600 images share the lower 16 bits of their hash; the two that look alike are the first and the last."""

    def inspected(number: int, split: str, bits: int, level: int) -> Inspection:
        stats = ImageStats(np.zeros(3), np.zeros(3), np.full((16, 16), level, np.uint8), bits, False)
        return Inspection(
            ManifestRow(f"{split}/{number:03d}.jpg", label="a", split=split, sha256=str(number)), stats=stats
        )

    generator = np.random.default_rng(0)
    others = [inspected(n, "train", int(generator.integers(1 << 47)) << 16 | 7, 0) for n in range(1, 599)]
    alike = [inspected(0, "train", 7, 100), inspected(599, "val", 7 | 1 << 40, 101)]
    assert find_pairs([alike[0], *others, alike[1]]) == [
        Pair("near_duplicate_across_splits", "train/000.jpg", "val/599.jpg")
    ]
    same = [inspected(n, "train" if n < 100 else "val", 7, 100) for n in range(200)]
    counts = Counter(pair.first for pair in find_pairs(same))
    assert max(counts.values()) == 20 and counts.keys() == {each.row.path for each in same[:-1]}
    assert {pair.code for pair in find_pairs(same) if pair.first == "train/000.jpg"} == {"near_duplicate_across_splits"}


def test_flat_images_are_not_duplicates(clean: Path) -> None:
    for number, level in enumerate((0, 3, 250, 255)):
        Image.new("RGB", (40, 40), (level,) * 3).save(clean / f"train/a/flat{number}.png")
    assert entries_of(audit_dataset(str(clean))) == []


def test_a_folder_without_splits(clean: Path) -> None:
    result = audit_dataset(str(clean / "train"))
    assert result.counts == {"": {"a": 14, "b": 14}}
    assert entries_of(result) == []
    photo(clean / "train/c/0.jpg", 100)
    for name in ("a.txt", "b.TXT"):
        (clean / "train" / name).touch()
    result = audit_dataset(str(clean / "train"))
    assert entries_of(result) == [("single_image", "c")]
    assert result.findings[0].text == "is a class with one image; at least 2 are needed to split it into train and val"
    assert result.notes == ["left out: 2 .txt files"]
    assert ("single_image", "train/c") not in entries_of(audit_dataset(str(clean))), "val exists"
    codes = {code for code, _ in entries_of(audit_dataset(str(clean / "train/a")))}
    assert codes == {"no_images", "one_class", "outside_classes"}


@pytest.mark.parametrize(("root", "message"), [("missing", "no such folder"), ("file", "it is a file")])
def test_missing_folders_are_rejected(tmp_path: Path, root: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=message):
        audit_dataset(str(tmp_path / root))


def command(tmp_path: Path, *overrides: str) -> Path:
    """Run the command and return its run folder."""
    folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
    folder.mkdir()
    config = plain("action=check", *overrides, name="prepare")
    try:
        main(Run(config=config, dir=folder))
    except FindingsError as error:
        (folder / "headline").write_text(str(error))
    return folder


def test_the_command_writes_a_page_and_a_manifest(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clean / "train/a/<b>&.jpg").write_bytes(b"x")
    shutil.copy(clean / "train/a/0.jpg", clean / "val/a/copy.jpg")
    folder = command(tmp_path, f"data.root={clean}")
    assert (folder / "headline").read_text() == "2 findings"
    page = (folder / "check.html").read_text()
    assert "http" not in page.replace("http-equiv", ""), "the page works offline"
    assert (
        f"<h1>Check of {clean}</h1>" in page
        and "2<small> findings</small>" in page
        and "1 file cannot be read." in page
    )
    assert "train/a/&lt;b&gt;&amp;.jpg" in page
    assert "<b>&" not in page
    assert page.count("data:image/jpeg;base64,") == 2 + 41, "a pair of duplicates, and samples of both classes"
    about = json.loads((folder / "check.json").read_text())
    assert {finding["code"] for finding in about["findings"]} == {
        "unreadable_unknown_format",
        "duplicate_across_splits",
    }
    rows = {row.path: row for row in read_manifest(folder / "manifest.csv", str(clean)).values()}
    assert len(rows) == 42
    one = rows["train/a/0.jpg"]
    assert (one.width, one.height, one.mode, one.label, one.split) == (90, 70, "RGB", "a", "train")
    assert one.size == (clean / "train/a/0.jpg").stat().st_size
    assert rows["train/a/<b>&.jpg"].width is None
    printed = capsys.readouterr().out
    assert "unreadable_unknown_format" in printed
    assert "check.html" in printed


def test_every_finding_has_a_heading_in_words() -> None:
    sources = "".join(path.read_text() for path in Path(inspection.__file__).parents[1].rglob("*.py"))
    assert set(re.findall(r'Finding\(\s*"(\w+)"', sources)) <= TITLES.keys()


def test_the_command_reports_clean_data(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = command(tmp_path, f"data.root={clean}")
    assert not (folder / "headline").exists()
    assert "no findings" in capsys.readouterr().out


def test_quarantine_and_restore(clean: Path, tmp_path: Path) -> None:
    write_odd_files(clean / "train/a")
    before = {path: os.lstat(path).st_size for path in clean.rglob("*")}
    command(tmp_path, f"data.root={clean}", "fix=quarantine")
    folder = Path(f"{clean}.quarantine")
    assert not any(code.startswith("unreadable") for code, _ in entries_of(audit_dataset(str(clean))))
    assert (folder / "train/a/truncated.jpg").exists()
    (clean / "train/a/again.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="quarantine must be a new folder"):
        command(tmp_path, f"data.root={clean}", "fix=quarantine")
    (clean / "train/a/again.jpg").unlink()
    (clean / "train/a/text.jpg").write_bytes(b"another one")
    with pytest.raises(DataError, match=r"cannot restore train/a/text.jpg; .*/train/a/text.jpg exists"):
        command(tmp_path, "action=restore", f"data.root={clean}", f"quarantine={folder}")
    (clean / "train/a/text.jpg").unlink()
    command(tmp_path, "action=restore", f"data.root={clean}", f"quarantine={folder}")
    assert {path: os.lstat(path).st_size for path in clean.rglob("*")} == before
    with pytest.raises(ConfigError, match=r"has no moves.jsonl"):
        command(tmp_path, "action=restore", f"data.root={clean}", f"quarantine={folder}")


@pytest.fixture
def quarantined(clean: Path) -> tuple[Path, Path]:
    """A dataset and its quarantine of two files."""
    for name in ("x.jpg", "sub/y.jpg"):
        (clean / "train/a" / name).parent.mkdir(exist_ok=True)
        (clean / "train/a" / name).write_bytes(b"no image")
    folder = clean.parent / "quarantine"
    assert quarantine(str(clean), ["train/a/x.jpg", "train/a/sub/y.jpg"], folder) == 2
    return clean, folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"from": "/home/u/.bash_aliases", "to": "train/a/x.jpg"}, "`from` must be train/a/x.jpg inside data.root="),
        ({"from": "{root}/../evil", "to": "train/a/x.jpg"}, "`from` must be"),
        ({"from": "{root}/train/b/x.jpg", "to": "train/a/x.jpg"}, "`from` must be"),
        ({"from": "train/a/x.jpg", "to": "train/a/x.jpg"}, "`from` must be"),
        ({"from": "{root}/../../x", "to": "../../x"}, "`to` must be a path inside the quarantine; got '../../x'"),
        ({"from": "/etc/hostname", "to": "/etc/hostname"}, "`to` must be a path inside the quarantine"),
        ({"from": "{root}/a/../../x", "to": "a/../../x"}, "`to` must be"),
        ({"from": "{root}/", "to": ""}, "`to` must be"),
        ({"from": "{root}/.", "to": "."}, "`to` must be"),
        ({"from": "{root}/moves.jsonl", "to": "moves.jsonl"}, "`to` must be"),
        ({"from": "{root}/a\0", "to": "a\0"}, "`to` must be"),
        (
            {"from": "{root}/out/evil", "to": "out/evil"},
            "out/evil must not pass through a link that leads out of its folder",
        ),
        ({"from": "{root}/linked/evil", "to": "linked/evil"}, "linked/evil must not pass through a link"),
        ({"from": "{root}/train/a", "to": "train/a"}, "train/a must be a file; it is a folder"),
        ({"from": "{root}/val/a/1.jpg", "to": "val/a/1.jpg"}, "cannot restore val/a/1.jpg; {root}/val/a/1.jpg exists"),
        ({"to": "train/a/x.jpg"}, "a line must be"),
        ({"from": 1, "to": ["x"]}, "a line must be"),
        (["x"], "a line must be"),
        (None, "a line must be"),
        ("text", "a line must be"),
        ("[" * 100_000, "a line must be"),
    ],
)
@pytest.mark.scenario(name="quarantine")
def test_malicious_quarantines_are_rejected(
    line: object, message: str, quarantined: tuple[Path, Path], tmp_path: Path
) -> None:
    root, folder = quarantined
    (root / "out").symlink_to(tmp_path)
    (folder / "out").mkdir()
    (folder / "out/evil").write_bytes(b"x")
    (folder / "linked").symlink_to(tmp_path)
    (tmp_path / "evil").write_bytes(b"x")
    for base in (root, folder):
        (base / "val/a").mkdir(parents=True, exist_ok=True)
        (base / "val/a/1.jpg").write_bytes(b"x")
    text = line if isinstance(line, str) else json.dumps(line).replace("{root}", str(root))
    with (folder / "moves.jsonl").open("a") as file:
        file.write(text + "\n")
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    with pytest.raises(DataError, match=re.escape(f"{folder}/moves.jsonl, line 3: ")) as caught:
        restore(str(root), folder)
    assert message.format(root=root) in str(caught.value)
    assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before


@pytest.mark.scenario(name="quarantine")
def test_nested_paths_in_a_quarantine_are_rejected(quarantined: tuple[Path, Path]) -> None:
    root, folder = quarantined
    (folder / "q").mkdir()
    (folder / "q/z").touch()
    (folder / "link").symlink_to("q")
    with (folder / "moves.jsonl").open("a") as file:
        for path in ("link", "link/z"):
            file.write(json.dumps({"from": f"{root}/{path}", "to": path}) + "\n")
    with pytest.raises(DataError, match="line 4: link/z is below another file in the list"):
        restore(str(root), folder)
    assert not (root / "train/a/x.jpg").exists()


def test_a_quarantine_is_only_restored_to_its_data_set(quarantined: tuple[Path, Path], tmp_path: Path) -> None:
    root, folder = quarantined
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DataError, match=r"line 1: `from` must be train/a/x.jpg inside data.root=.*/other; got"):
        restore(str(other), folder)
    (root / "train/a/sub").rmdir()
    (tmp_path / "alias").symlink_to(root)
    assert restore(f"{tmp_path}/alias/", folder) == 2
    assert (root / "train/a/sub/y.jpg").read_bytes() == b"no image"
    with pytest.raises(ConfigError, match=r"data\.root must be given"):
        command(tmp_path, "action=restore", f"quarantine={folder}")


@pytest.mark.scenario(name="quarantine")
def test_files_outside_of_the_data_set_are_not_quarantined(clean: Path, tmp_path: Path) -> None:
    photo(tmp_path / "far/0.jpg", 1)
    (clean / "train/c").symlink_to(tmp_path / "far")
    with pytest.raises(DataError, match=r"only files inside .* can be moved; train/c/0.jpg is outside, behind a link"):
        quarantine(str(clean), ["train/a/0.jpg", "train/c/0.jpg"], tmp_path / "q")
    with pytest.raises(ConfigError, match="quarantine must be outside of the dataset"):
        quarantine(str(clean), ["train/a/0.jpg"], clean / "q")
    assert (clean / "train/a/0.jpg").exists()


def test_hidden_and_special_files_are_named(clean: Path) -> None:
    for folder in ("train/a/@eaDir/0.jpg", "#recycle", "val/lost+found"):
        photo(clean / folder / "thumb.jpg", 7)
    os.mkfifo(clean / "train/a/pipe.jpg")
    (clean / "train/a/null.png").symlink_to("/dev/null")
    result = audit_dataset(str(clean))
    assert entries_of(result) == [("special_file", "train/a/null.png"), ("special_file", "train/a/pipe.jpg")]
    assert result.findings[1].text == "is left out: it is a FIFO, and only regular files are read"
    assert result.notes == [
        f"{clean}: skipped hidden files and folders: 1 #recycle",
        "left out in train: 1 @eaDir",
        "left out in val: 1 lost+found",
    ]


def test_files_are_compared_with_a_manifest(clean: Path, tmp_path: Path) -> None:
    first = command(tmp_path, f"data.root={clean}") / "manifest.csv"
    photo(clean / "train/a/0.jpg", 1000)
    photo(clean / "train/a/new.jpg", 1001)
    (clean / "val/b/39.jpg").unlink()
    folder = command(tmp_path, f"data.root={clean}", f"manifest={first}")
    codes = {
        finding["code"]: finding["path"] for finding in json.loads((folder / "check.json").read_text())["findings"]
    }
    assert codes == {
        "manifest_changed": "train/a/0.jpg",
        "manifest_new": "train/a/new.jpg",
        "manifest_gone": "val/b/39.jpg",
    }


def test_training_reads_only_files_of_the_manifest(train, clean: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    manifest = command(tmp_path, f"data.root={clean}") / "manifest.csv"
    train(f"data.root={clean}", f"data.manifest={manifest}", run_dir=tmp_path / "good")
    content = bytearray((clean / "train/a/4.jpg").read_bytes())
    content[-30] ^= 1
    (clean / "train/a/4.jpg").write_bytes(content)
    Image.open(BytesIO(bytes(content))).load()
    for options in ([], ["data.cache=packed"]):
        with pytest.raises(ImageError, match=r"train/a/4.jpg: its SHA-256 differs from the one in the manifest"):
            train(f"data.root={clean}", f"data.manifest={manifest}", *options, run_dir=tmp_path / f"bad{len(options)}")
    photo(clean / "train/a/new.jpg", 1)
    with pytest.raises(DataError, match=r"it lacks 1 of the train split, such as train/a/new.jpg"):
        train(f"data.root={clean}", f"data.manifest={manifest}", run_dir=tmp_path / "new")


def test_a_manifest_can_be_the_data_set(clean: Path, tmp_path: Path) -> None:
    manifest = clean / "list.csv"
    shutil.copy(command(tmp_path, f"data.root={clean}") / "manifest.csv", manifest)
    splits = find_splits(str(manifest), val_fraction=0.2, test_fraction=0.0)
    assert [len(split) for _, split in splits.items()] == [28, 12]
    assert splits.classes == ["a", "b"]
    assert splits.train.hashes is not None
    lines = manifest.read_text().splitlines()
    for content, message in (
        ("name\na\n", "must be a CSV file with a column path or file or filename or image; .* has 'name'"),
        ("path,split\na.jpg,train\n", "must have rows of the split val"),
        ("path,split\na.jpg,train\nb.jpg,val\n", "every row of a training manifest needs a class"),
        (
            "path,split,class\na.jpg,train,x\nb.jpg,val,y\n",
            "every class must be in the training split; .* has y elsewhere",
        ),
        ("path,split,class\na.jpg,train,x\nb.jpg,val,x\n", "at least 2 classes; .* has one, x"),
        ("path,size\na.jpg,big\n", "line 2: size must be an integer; got 'big'"),
        ("path,size\n,3\n", "line 2: the path must not be empty"),
        ("\n".join([lines[0], lines[1].replace(lines[1].split(",")[2], "xyz"), *lines[2:]]), "64 hexadecimal digits"),
    ):
        manifest.write_text(content)
        with pytest.raises(DataError, match=message):
            find_splits(str(manifest), val_fraction=0.2, test_fraction=0.0)


def killed(work: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_fails_the_audit(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MIN_FILES_FOR_POOL", 1)
    monkeypatch.setattr(inspection, "inspect_file", killed)
    with pytest.raises(RankError, match="a process that reads images was killed; usually"), translate_errors(clean):
        audit_dataset(str(clean))
