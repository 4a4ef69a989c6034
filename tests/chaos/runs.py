"""Runs that are killed, told to stop, or lose a rank."""

import os
import random
import signal
import statistics
import time
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from alexlab.runs.layout import LAST
from alexlab.runs.record import RunRecord
from alexlab.training.module import Classifier
from chaos.harness import Figure, Place, acting, said, same
from support.exact_resume import Recorded, compare, content

BATCHES = 18  # of a run: 2 epochs of 6 batches of training and 3 of validation


def killed(place: Place, tries: int, draw: random.Random) -> Figure:
    """R1: SIGKILL at a random moment, resumed; the final weights, optimizer, rates and counters."""
    whole = place.whole()
    right, hit = 0, []
    for number in range(tries):
        run_dir = place.new(f"killed_{number}")
        process, answer = place.start(run_dir=run_dir)
        place.wait_for(draw.randint(1, BATCHES), process)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        hit.append(place.step.value)
        said(process, answer)
        ended = place.run(run_dir=run_dir, resumed=True)
        right += ended == "finished" and same(whole, run_dir)
    steps = sorted(set(hit))
    return Figure(
        "R1",
        "kill -9 at a random moment, resumed: final state bit-identical",
        right,
        tries,
        f"{len(steps)} of {BATCHES} batches hit",
        lists={"batches hit": steps},
    )


def resumed(place: Place, tries: int, draw: random.Random) -> Figure:
    """R2: from every save point, all later checkpoints; a second resume begins with one of those."""
    combinations: list[tuple[str, ...]] = [
        (f"data.num_workers={workers}", f"trainer.accumulate_grad_batches={accumulate}", f"trainer.devices={ranks}")
        for workers in (0, 2)
        for accumulate in (1, 2)
        for ranks in (1, 2)
    ]
    points = compared = wrong = 0
    for words in combinations[:tries]:
        folder = place.new("_".join(word.rpartition("=")[2] for word in words))
        folder.mkdir()
        run = Recorded(place.train, folder)
        more = (*words, "augmentation=mixup", "scheduler=cosine", "optimizer=sgd")
        with redirect_stdout(StringIO()):
            whole = run(*more, name="whole")
            for point in sorted(whole.iterdir())[:-1]:
                points += 1
                try:
                    compared += compare(whole, run(*more, name=f"from_{point.stem}", begin=point), point.name)
                except AssertionError:
                    wrong += 1
    return Figure(
        "R2",
        "resumed from every step, workers 0 and 2, accumulation 1 and 2, ranks 1 and 2",
        points - wrong,
        points,
        f"{compared} later checkpoints are equal, each the start of a second resume",
    )


def told_to_stop(place: Place, tries: int, draw: random.Random) -> Figure:
    """R7: SIGTERM at a random moment, to one rank, to both or to their parent."""
    words = ("trainer.devices=2",)
    whole = place.whole(*words)
    right = hangs = 0
    seconds: list[float] = []
    codes: set[int] = set()
    for number in range(tries):
        run_dir = place.new(f"stopped_{number}")
        process, answer = place.start(*words, run_dir=run_dir)
        place.wait_for(draw.randint(1, BATCHES - 2), process)
        time.sleep(draw.uniform(0, 0.02))
        children = _children(process.pid)
        targets = {"one": children[:1], "the other": children[1:2], "both": children, "parent": [process.pid]}
        asked_s = time.monotonic()
        for pid in targets[draw.choice([*targets])]:
            os.kill(pid, signal.SIGTERM)
        ended = said(process, answer, 60.0)
        seconds.append(time.monotonic() - asked_s)
        hangs += ended == "hangs"
        codes.add(RunRecord(run_dir).read().get("exit_code", -1))
        finished = ended == "Interrupted: stopped by SIGTERM" and place.run(*words, run_dir=run_dir, resumed=True)
        right += finished == "finished" and same(whole, run_dir)
    return Figure(
        "R7",
        "SIGTERM at a random moment to one rank, both, or the parent; resumed: bit-identical",
        right,
        tries,
        f"{hangs} hangs, exit codes {sorted(codes)}, ended after {statistics.median(seconds):.1f} s (most {max(seconds):.1f})",
    )


def _children(pid: int) -> list[int]:
    """The ranks of a run, in their order."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return sorted(map(int, file.read().split()))


def lost(place: Place, tries: int, draw: random.Random) -> list[Figure]:
    """R8: a rank is killed, raises or is stopped, `tries` times each."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise KeyError("a bug")

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    cases: dict[str, tuple[Any, str, float]] = {
        "killed": (kill, "was killed by SIGKILL", 10.0),
        "raised": (fail, "raised KeyError: 'a bug'", 10.0),
        "stopped": (stop, "is suspended (SIGSTOP)", 15.0),
    }
    figures = []
    for name, (act, words, limit_s) in cases.items():
        right, seconds = 0, []
        for number in range(tries):
            run_dir, rank, at = place.new(f"lost_{name}_{number}"), draw.randint(0, 1), draw.randint(2, BATCHES - 1)
            struck = place.new(f"lost_{name}_{number}.struck")

            def strike(
                module: Classifier, count: int, rank: int = rank, at: int = at, struck: Any = struck, act: Any = act
            ) -> None:
                if (module.global_rank, count) == (rank, at):
                    struck.write_text(str(time.monotonic()))
                    act()

            with acting(place, strike):
                ended = place.run("trainer.devices=2", "elastic.timeout_s=5", "elastic.shutdown_s=1", run_dir=run_dir)
            took_s = time.monotonic() - float(struck.read_text())
            seconds.append(took_s)
            named = ended.startswith(f"RankError: rank {rank} ") and words in ended
            right += named and took_s < limit_s and RunRecord(run_dir).read()["exit_code"] == 5
        figures.append(
            Figure(
                "R8",
                f"a rank {'is ' if name != 'raised' else 'has '}{name}: rank and cause named, all ended within {limit_s:.0f} s",
                right,
                tries,
                f"after {statistics.median(seconds):.1f} s (most {max(seconds):.1f})"
                + (", elastic.timeout_s=5" if name == "stopped" else ""),
            )
        )
    return figures


def restarted(place: Place, tries: int, draw: random.Random) -> Figure:
    """R8 with elastic.max_restarts: killed twice, restarted from the last checkpoint."""
    words = ("trainer.devices=2",)
    whole, right = place.whole(*words), 0
    for number in range(tries):
        run_dir = place.new(f"restarted_{number}")
        points = sorted(draw.sample(range(2, BATCHES - 1), 2))

        def strike(module: Classifier, count: int, points: Any = points) -> None:
            attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
            if module.global_rank == 1 and attempt < 2 and module.global_step >= points[attempt] // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        with acting(place, strike):
            ended = place.run(*words, "elastic.max_restarts=2", run_dir=run_dir)
        right += ended == "finished" and same(whole, run_dir) and len(RunRecord(run_dir).read()["restarts"]) == 2
    return Figure("R8", "killed twice with elastic.max_restarts=2: finished, bit-identical", right, tries)


def repeated(place: Place, tries: int, draw: random.Random) -> Figure:
    """R10: the same seed twice, and with other numbers of loader processes."""
    right = 0
    words = ("augmentation=inception",)
    whole = place.whole(*words)
    for number, workers in enumerate((0, 1, 2, 4)[:tries]):
        run_dir = place.new(f"again_{number}")
        ended = place.run(*words, f"data.num_workers={workers}", run_dir=run_dir)
        right += ended == "finished" and same(whole, run_dir)
    assert content(whole / LAST)["global_step"] == 12
    return Figure(
        "R10", "the same seed again, with 0, 1, 2 and 4 loader processes: bit-identical", right, min(tries, 4)
    )
