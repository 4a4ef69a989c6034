import io
import logging
import sys
from pathlib import Path

import pytest
from rich.table import Table

from alexlab.output.command_line import command_line, own_commands, short_path
from alexlab.output.log_handler import WHOLE, log_terminal, shorter
from alexlab.output.progress import line_progress
from alexlab.output.terminal import PathCell, Terminal
from support.terminal import open_terminal, screen, widest

log = logging.getLogger("tests.terminal")
log.setLevel(logging.INFO)
PATH = f"outputs/{'a' * 70}/run.json"


def test_log_lines_and_prints_appear_above_a_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_terminal(monkeypatch, width=60)
    bar = line_progress()
    with bar:
        bar.add_task("epoch 1/2", total=9, count="1/9", values="loss 2.3", left="")
        log.info("first")
        print("second")
        print("third", file=sys.stderr)
        shown = screen(stream.getvalue())
        assert shown[:3] == ["first", "second", "third"]
        assert shown[3].startswith("epoch 1/2 ") and shown[3].endswith("1/9 loss 2.3") and len(shown) == 4
        assert len(shown[3]) <= 60
    assert list(filter(None, screen(stream.getvalue()))) == ["first", "second", "third"], "the bar is removed"


def test_a_line_of_another_process_does_not_tear_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_terminal(monkeypatch, width=60)
    bar = line_progress()
    with bar:
        task = bar.add_task("epoch 1/2", total=9, count="1/9", values="", left="")
        Terminal(file=stream).print_lines("from rank 1")  # has no part in the bar
        bar.update(task, count="2/9")
        bar.refresh()
        first, second = screen(stream.getvalue())
    assert first == "from rank 1" and second.startswith("epoch 1/2 ") and second.endswith("2/9")


def test_lines_wrap_at_spaces_and_commands_and_paths_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_terminal(monkeypatch, width=60)
    log.info("%s", "word " * 20)
    log.info("see %s", PATH)
    log.info("python src/train.py %s", "key=value " * 10, extra=WHOLE)
    lines = screen(stream.getvalue())
    assert lines[0].startswith("word word") and lines[1].startswith("  word") and widest(lines[:2]) <= 60
    assert lines[2:5] == ["see", f"  {PATH}", f"python src/train.py {'key=value ' * 10}".rstrip()]


def test_a_record_has_shorter_texts_for_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_terminal(monkeypatch, width=60)
    log.info("a" * 61, extra=shorter(["b" * 60, "c"]))
    assert screen(stream.getvalue()) == ["b" * 60, ""]


def test_tracebacks_are_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_terminal(monkeypatch, width=60)
    try:
        raise ValueError("word " * 20)
    except ValueError:
        log.exception("failed")
    assert f"ValueError: {'word ' * 20}".rstrip() in screen(stream.getvalue())


def test_files_get_plain_lines_of_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch, width=60)
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("COLUMNS")
    log.info("%s", "word " * 20, extra=shorter(["b"]))
    table = Table("a", "b", title="title")
    table.add_row("x" * 50, "y" * 50)
    Terminal().print_table(table, optional=["b"])
    assert file.getvalue().startswith(f"{'word ' * 20}\ntitle\n") and "y" * 50 in file.getvalue()
    assert "\x1b" not in file.getvalue() and not log_terminal().is_terminal


@pytest.mark.parametrize(
    ("width", "headers"), [(60, ["name"]), (80, ["name", "size"]), (200, ["name", "size", "note"])]
)
def test_tables_lose_optional_columns_until_they_fit(width: int, headers: list[str]) -> None:
    table = Table("name", "size", "note", title=f"a title that is wider than the table: {PATH}")
    table.add_row("n" * 40, "s" * 20, "o" * 30)
    file = io.StringIO()
    Terminal(file=file, width=width).print_table(table, optional=["note", "size"])
    assert [column.header for column in table.columns] == headers
    lines = file.getvalue().splitlines()
    assert any(line.endswith(PATH) for line in lines), "a path is not broken"
    assert widest([line for line in lines if PATH not in line]) <= width


@pytest.mark.parametrize(("width", "cell"), [(100, "文件夹/very/long/path.jpg"), (36, ".../long/path.jpg")])
def test_the_start_of_a_long_path_is_left_out(width: int, cell: str) -> None:
    table, file = Table("image", "prediction 1"), io.StringIO()
    table.add_row(PathCell("文件夹/very/long/path.jpg"), "cat 0.9")
    Terminal(file=file, width=width).print_table(table)
    lines = file.getvalue().splitlines()
    assert lines[3].split("│")[1].strip() == cell
    assert widest(lines) <= width


def test_commands_are_quoted_and_start_as_this_process_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    assert command_line("evaluate", "ckpt=my run") == "alexlab evaluate 'ckpt=my run'"
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(sys, "argv", ["src/train.py"])
    assert command_line("evaluate", "ckpt=a") == "python src/evaluate.py ckpt=a"
    assert own_commands("after python src/prepare.py x") == "after python src/prepare.py x"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert own_commands("after python src/prepare.py x") == "after alexlab prepare x"
    assert (short_path("src/x"), short_path(tmp_path)) == ("src/x", str(tmp_path))
