"""Contenders take turns, and one that fails says so."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alexlab.benchmark.commands import command_of, in_turn, run_command, split_command
from alexlab.benchmark.interleave import Contender, Figures, Turns, contest, repeated
from alexlab.errors import AlexlabError, ConfigError


def marking(path: Path, name: str) -> Callable[[], Callable[[], Figures]]:
    def prepare() -> Callable[[], Figures]:
        def work() -> Figures:
            start_s = time.perf_counter()
            with path.open("a") as file:
                file.write(name)
            return {"s": time.perf_counter() - start_s, "pid": float(os.getpid())}

        return work

    return prepare


def test_they_take_turns_in_reversed_orders_and_the_first_round_does_not_count(tmp_path: Path) -> None:
    order = tmp_path / "order"
    contenders = [Contender(name, repeated(marking(order, name))) for name in "abc"]
    found = contest(contenders, rounds=3, log_dir=tmp_path / "logs", title="test")
    assert order.read_text() == "cbaabccbaabc"
    assert {name: len(figures) for name, figures in found.items()} == {"a": 3, "b": 3, "c": 3}
    processes = {each["pid"] for figures in found.values() for each in figures}
    assert len(processes) == 3
    assert os.getpid() not in processes
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


def test_what_they_print_goes_through_a_terminal_to_a_log(tmp_path: Path) -> None:
    def body(turns: Turns) -> None:
        turns.next()
        print("a terminal" if os.isatty(1) else "a file", os.get_terminal_size().columns, flush=True)
        turns.next({})

    contest([Contender("the one", body)], rounds=1, log_dir=tmp_path, title="test", warmup=0)
    assert "a terminal 120" in (tmp_path / "the_one.log").read_text()


def test_a_contender_is_bound_to_its_cores(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    body = repeated(lambda: lambda: {"cores": float(len(os.sched_getaffinity(0)))})
    found = contest([Contender("one", body, [core])], rounds=1, log_dir=tmp_path, title="test")
    assert found["one"] == [{"cores": 1.0}]


def test_a_failure_is_told_with_its_words(tmp_path: Path) -> None:
    def fails() -> Callable[[], Figures]:
        raise ValueError("no such thing")

    with pytest.raises(AlexlabError, match="second has failed: ValueError: no such thing"):
        contest(
            [Contender("first", repeated(lambda: dict)), Contender("second", repeated(fails))],
            rounds=1,
            log_dir=tmp_path,
            title="test",
        )
    assert "Traceback" in (tmp_path / "second.log").read_text()


def test_a_contender_that_is_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(AlexlabError, match="gone has ended before its turn was over"):
        contest([Contender("gone", lambda turns: os._exit(3))], rounds=1, log_dir=tmp_path, title="test")


def test_commands_take_turns_and_tell_their_failures(tmp_path: Path) -> None:
    calls: list[str] = []
    found = in_turn({name: lambda name=name: calls.append(name) or 1.0 for name in "ab"}, 2)  # type: ignore[misc]
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    log = tmp_path / "log"
    assert run_command(["sh", "-c", "echo said"], log) > 0
    assert log.read_text() == "said\n"
    with pytest.raises(AlexlabError, match=r"sh -c 'exit 3' has ended with 3; .*log has its words"):
        run_command(["sh", "-c", "exit 3"], log)
    with pytest.raises(ConfigError, match="cannot run /no/such: No such file"):
        run_command(["/no/such"], log)


def test_the_places_of_a_peers_command_are_filled_in() -> None:
    line = "python a.py --data {root} --epochs {epochs} 'two words'"
    assert split_command(line, root="/d", epochs=2) == ["python", "a.py", "--data", "/d", "--epochs", "2", "two words"]
    with pytest.raises(ConfigError, match=r"peer may hold \{root\}, and its quotes must be closed; got 'a \{b\}'"):
        split_command("a {b}", root="/d")
    assert Path(command_of("train.py", [])[1]).is_file()
