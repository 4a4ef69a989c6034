"""The page of all runs: its content, its links, concurrent commands, and errors that must not reach a run."""

import fcntl
import logging
import multiprocessing
import re
import time
import urllib.parse
from pathlib import Path

import pytest

from alexlab.records.index import INDEX, LOCK, PENDING, refresh_index, update_index
from support.runs import write_record

NAME = "a <b>\x1b[31m é"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all runs in the working directory: a run, a sweep of two, an evaluation and a corrupt record."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALEXLAB_OUTPUTS", raising=False)
    folder = write_record(Path("outputs/train/day") / NAME, tags=["paper"], top1=0.25)
    (folder / "train.log").touch()
    for number in range(2):
        write_record(Path(f"outputs/sweeps/day/s/{number}_lr"), top1=0.5 + number / 10, start_s=2e9)
    (Path("outputs/sweeps/day/s/1_lr") / "curves.png").touch()
    Path("outputs/sweeps/day/s/sweep.json").write_text("{}")
    Path("outputs/sweeps/day/s/report.html").write_text("<title>2 runs</title>")
    page = Path("outputs/evaluate/day/e/evaluation.html")
    page.parent.mkdir(parents=True)
    page.write_text("<title>cats &amp; &lt;dogs&gt;</title>")
    Path("outputs/broken").mkdir()
    Path("outputs/broken/run.json").write_text("{")
    return Path("outputs")


def test_everything_is_on_the_page_and_every_link_exists(outputs):
    update_index(outputs)
    page = (outputs / INDEX).read_text()
    assert r"a &lt;b&gt;\x1b[31m é" in page and "<b>\x1b" not in page
    assert "<dd>3 finished, 1 unreadable</dd>" in page
    assert "is corrupt: Expecting property name" in page
    assert ">cats &amp; &lt;dogs&gt;</a>" in page
    assert "finished, val top-1 0.6000" in page and page.count("<figure") == 1
    targets = re.findall(r'(?:href|src)="([^"]+)"', page)
    names = {urllib.parse.unquote(target) for target in targets}
    assert names >= {f"train/day/{NAME}/train.log", "sweeps/day/s/report.html", "evaluate/day/e/evaluation.html", "sweeps/day/s/1_lr/curves.png"}  # fmt: skip
    assert all((outputs / name).exists() for name in names)
    assert sorted(path.name for path in outputs.iterdir()) == [LOCK, "broken", "evaluate", INDEX, "sweeps", "train"]


def test_a_page_without_runs(tmp_path):
    update_index(tmp_path)
    assert "<dd>none</dd>" in (tmp_path / INDEX).read_text()


def test_another_process_that_writes_the_page_includes_this_run(outputs):
    update_index(outputs)
    write_record(outputs / "late")
    with (outputs / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start_s = time.perf_counter()
        update_index(outputs)
        assert time.perf_counter() - start_s < 1
        assert (outputs / PENDING).exists()
        assert ">late<" not in (outputs / INDEX).read_text()
    update_index(outputs)
    assert ">late<" in (outputs / INDEX).read_text()
    assert not (outputs / PENDING).exists()


def _end_run(number: int) -> None:
    write_record(Path(f"outputs/concurrent/{number}"))
    update_index(Path("outputs"))


def test_runs_that_end_together_are_all_on_the_page(outputs):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_end_run, args=(number,)) for number in range(12)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    page = (outputs / INDEX).read_text()
    assert all(f">concurrent/{number}</a>" in page for number in range(12))
    assert page.endswith("</html>\n")


def test_it_is_written_only_into_the_folder_of_all_runs(outputs, tmp_path, monkeypatch):
    for folder in (write_record(tmp_path / "elsewhere/run"), outputs, outputs / "missing"):
        refresh_index(folder)
        assert not list(tmp_path.rglob(INDEX))
    refresh_index((outputs / "broken").absolute())
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob(INDEX)] == [outputs / INDEX]
    monkeypatch.setenv("ALEXLAB_OUTPUTS", "elsewhere")
    refresh_index(Path("elsewhere/run"))
    assert (tmp_path / "elsewhere" / INDEX).is_file()


def test_a_young_page_is_kept_while_a_sweep_runs(outputs):
    refresh_index(outputs / "broken", min_age_s=60)
    before = (outputs / INDEX).stat().st_mtime_ns
    refresh_index(outputs / "broken", min_age_s=60)
    assert (outputs / INDEX).stat().st_mtime_ns == before
    refresh_index(outputs / "broken")
    assert (outputs / INDEX).stat().st_mtime_ns > before


def test_an_error_is_logged_and_not_raised(outputs, caplog):
    (outputs / INDEX / "x").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        refresh_index(outputs / "broken")
    assert caplog.messages == [f"outputs/index.html was not updated: [Errno 21] Is a directory: 'outputs/.index.html.{_pid()}' -> 'outputs/index.html'"]  # fmt: skip


def _pid() -> int:
    return multiprocessing.current_process().pid or 0


@pytest.mark.slow
def test_500_runs_take_less_than_a_second(tmp_path):
    for number in range(500):
        write_record(tmp_path / f"train/{number}")
    durations = []
    for _ in range(3):
        start_s = time.perf_counter()
        update_index(tmp_path)
        durations.append(time.perf_counter() - start_s)
    assert min(durations) < 1, "0.4 s on 2 busy cores"
