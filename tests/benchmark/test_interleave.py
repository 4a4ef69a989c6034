"""Interleaved candidates: order of turns, logs, failures, and whole commands as candidates."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alexlab.benchmark.commands import command_timer, peer_command, script_command
from alexlab.benchmark.interleave import Candidate, Figures, Turn, interleave, loop
from alexlab.errors import AlexlabError, ConfigError


def prepare_append(path: Path, name: str) -> Callable[[], Figures]:
    def work() -> Figures:
        start_s = time.perf_counter()
        with path.open("a") as file:
            file.write(name)
        return {"s": time.perf_counter() - start_s, "pid": float(os.getpid())}

    return work


def test_order_is_reversed_in_each_round_and_warmup_is_not_recorded(tmp_path: Path) -> None:
    order = tmp_path / "order"
    candidates = [Candidate(name, loop(prepare_append, order, name)) for name in "abc"]
    results = interleave(candidates, num_rounds=3, log_dir=tmp_path / "logs", title="test")
    assert order.read_text() == "cbaabccbaabc"
    assert {name: len(figures) for name, figures in results.items()} == {"a": 3, "b": 3, "c": 3}
    pids = {each["pid"] for figures in results.values() for each in figures}
    assert len(pids) == 3
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_failed_and_slow_candidates_cost_only_themselves_where_failures_are_collected(tmp_path: Path) -> None:
    def fail(turn: Turn) -> None:
        turn.next()
        raise ValueError("no memory")

    def stall() -> Callable[[], Figures]:
        turns = iter((0.0, 30.0))
        return lambda: time.sleep(next(turns)) or {"s": 1.0}

    candidates = [
        Candidate("works", loop(prepare_append, tmp_path / "order", "a")),
        Candidate("fails", fail),
        Candidate("stalls", loop(stall)),
    ]
    failures: dict[str, str] = {}
    results = interleave(candidates, num_rounds=3, log_dir=tmp_path, title="test", turn_s=2.0, failures=failures)
    assert {name: len(figures) for name, figures in results.items()} == {"works": 3, "fails": 0, "stalls": 0}
    assert failures["fails"].startswith("fails failed: ValueError: no memory; its output is in")
    assert failures["stalls"].startswith("stalls took more than 2 s for a turn; its output is in")


def test_output_goes_to_a_log(tmp_path: Path) -> None:
    def run(turn: Turn) -> None:
        turn.next()
        print("printed")
        os.system("echo of a child >&2")
        turn.next({})

    interleave([Candidate("the one/only", run)], num_rounds=1, log_dir=tmp_path, title="test", num_warmup=0)
    assert (tmp_path / "the_one_only.log").read_text() == "printed\nof a child\n"


def test_candidates_are_bound_to_their_cores(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    run = loop(lambda: lambda: {"cores": float(len(os.sched_getaffinity(0)))})
    results = interleave([Candidate("one", run, [core])], num_rounds=1, log_dir=tmp_path, title="test")
    assert results["one"] == [{"cores": 1.0}]


def test_the_largest_sample_of_a_turn_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexlab.benchmark.interleave.SAMPLE_S", 0.001)
    samples = iter([3.0, 7.0, 5.0, *[1.0] * 10_000])
    run = loop(lambda: lambda: time.sleep(0.05) or {"s": 0.05, "pid": float(os.getpid())})  # type: ignore[func-returns-value]
    results = interleave(
        [Candidate("one", run)],
        num_rounds=1,
        log_dir=tmp_path,
        title="test",
        num_warmup=0,
        sample=lambda pid: {"peak": next(samples), "sampled_pid": float(pid)},
    )
    (figures,) = results["one"]
    assert figures["peak"] == 7.0
    assert figures["pid"] == figures["sampled_pid"]


def test_a_failure_is_raised_with_its_message_and_its_log(tmp_path: Path) -> None:
    def fail() -> Callable[[], Figures]:
        raise ValueError("no such thing")

    candidates = [Candidate("first", loop(lambda: dict)), Candidate("second", loop(fail))]
    message = rf"second failed: ValueError: no such thing; its output is in {tmp_path}/second\.log"
    with pytest.raises(AlexlabError, match=message):
        interleave(candidates, num_rounds=1, log_dir=tmp_path, title="test")
    assert "Traceback" in (tmp_path / "second.log").read_text()


def test_a_candidate_that_exits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AlexlabError, match="gone exited in the middle of its turn") as caught:
        interleave([Candidate("gone", lambda turn: os._exit(3))], num_rounds=1, log_dir=tmp_path, title="test")
    assert caught.value.exit_code == 1, "it is not a bug"
    with pytest.raises(AlexlabError, match="short failed: it returned before its last turn"):
        interleave([Candidate("short", lambda turn: None)], num_rounds=1, log_dir=tmp_path, title="test")


def test_commands_are_timed_and_their_output_is_logged(tmp_path: Path) -> None:
    candidates = [Candidate(text, loop(command_timer, ["echo", text])) for text in ("one", "two")]
    results = interleave(candidates, num_rounds=2, log_dir=tmp_path, title="test")
    assert all(len(figures) == 2 and figures[0]["s"] > 0 for figures in results.values())
    assert (tmp_path / "two.log").read_text() == "two\n" * 3


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    candidate = Candidate("three", loop(command_timer, ["sh", "-c", "exit 3"]))
    with pytest.raises(
        AlexlabError, match=r"three failed: AlexlabError: `sh -c 'exit 3'` exited with code 3; its output"
    ):
        interleave([candidate], num_rounds=1, log_dir=tmp_path, title="test")


def test_the_fields_of_a_peer_command_are_filled_in() -> None:
    line = f"{sys.executable} a.py --data {{root}} --epochs {{epochs}} 'two words'"
    expected = [sys.executable, "a.py", "--data", "/d", "--epochs", "2", "two words"]
    assert peer_command(line, root="/d", epochs=2) == expected
    with pytest.raises(
        ConfigError, match=r"peer must have closed quotes and no fields other than \{root\}; got 'a \{b\}'"
    ):
        peer_command("a {b}", root="/d")
    with pytest.raises(ConfigError, match="peer must begin with a program that can be run; got '/no/such --x'"):
        peer_command("/no/such --x", root="/d")


def test_script_command_is_a_script_of_ours() -> None:
    assert Path(script_command("train.py", [])[1]).is_file()
