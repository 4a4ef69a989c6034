"""Runs that are killed, signalled or lose a rank."""

import os
import random
import signal
import statistics
import time
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from alexlab.records.layout import LAST
from alexlab.records.record import RunRecord
from alexlab.training.module import Classifier
from chaos.harness import Result, Workspace, identical, outcome
from support.exact_resume import RecordedRun, compare, content

BATCHES = 18  # of a run: 2 epochs of 6 training and 3 validation batches


def sigkill(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Kill a run at a random moment, resume it, and compare it with an uninterrupted one."""
    expected = workspace.uninterrupted()
    passed, hit = 0, []
    for number in range(tries):
        run_dir = workspace.path(f"killed_{number}")
        process, receiver = workspace.start(run_dir=run_dir)
        workspace.wait_for(rng.randint(1, BATCHES), process)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        hit.append(workspace.step.value)
        outcome(process, receiver)
        resumed = workspace.run(run_dir=run_dir, resumed=True)
        passed += resumed == "finished" and identical(expected, run_dir)
    batches = sorted(set(hit))
    return Result(
        "sigkill",
        "kill -9 at a random moment, then resume: the final state is bit-identical",
        passed,
        tries,
        f"{len(batches)} of {BATCHES} batches were interrupted",
        lists={"batches hit": batches},
    )


def resume_points(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Resume from every checkpoint and compare all later ones, each of which is the start of another resume."""
    combinations: list[tuple[str, ...]] = [
        (f"data.num_workers={workers}", f"trainer.accumulate_grad_batches={accumulate}", f"trainer.devices={ranks}")
        for workers in (0, 2)
        for accumulate in (1, 2)
        for ranks in (1, 2)
    ]
    points = compared = failed = 0
    for combination in combinations[:tries]:
        folder = workspace.path("_".join(override.rpartition("=")[2] for override in combination))
        folder.mkdir()
        run = RecordedRun(workspace.train, folder)
        overrides = (*combination, "augmentation=mixup", "scheduler=cosine", "optimizer=sgd")
        with redirect_stdout(StringIO()):
            expected = run(*overrides, name="uninterrupted")
            for point in sorted(expected.iterdir())[:-1]:
                points += 1
                try:
                    resumed = run(*overrides, name=f"from_{point.stem}", begin=point)
                    compared += compare(expected, resumed, point.name)
                except AssertionError:
                    failed += 1
    return Result(
        "resume_points",
        "resume from every step, with 0 and 2 DataLoader workers, 1 and 2 accumulation steps, 1 and 2 ranks: bit-identical",
        points - failed,
        points,
        f"all {compared} later checkpoints are identical; each was resumed again",
    )


def sigterm(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Send SIGTERM at a random moment to one rank, to both or to their parent."""
    overrides = ("trainer.devices=2",)
    expected = workspace.uninterrupted(*overrides)
    passed = hangs = 0
    durations_s: list[float] = []
    codes: set[int] = set()
    for number in range(tries):
        run_dir = workspace.path(f"stopped_{number}")
        process, receiver = workspace.start(*overrides, run_dir=run_dir)
        workspace.wait_for(rng.randint(1, BATCHES - 2), process)
        time.sleep(rng.uniform(0, 0.02))
        ranks = _children(process.pid)
        targets = {"rank 0": ranks[:1], "rank 1": ranks[1:2], "both": ranks, "parent": [process.pid]}
        start_s = time.monotonic()
        for pid in targets[rng.choice([*targets])]:
            os.kill(pid, signal.SIGTERM)
        stopped = outcome(process, receiver, 60.0)
        durations_s.append(time.monotonic() - start_s)
        hangs += stopped == "hangs"
        codes.add(RunRecord(run_dir).read().get("exit_code", -1))
        resumed = stopped == "Interrupted: stopped by SIGTERM" and workspace.run(
            *overrides, run_dir=run_dir, resumed=True
        )
        passed += resumed == "finished" and identical(expected, run_dir)
    return Result(
        "sigterm",
        "SIGTERM at a random moment to one of two ranks, both, or their parent, then resume: bit-identical",
        passed,
        tries,
        f"{hangs} hangs, exit codes {sorted(codes)}, exit {_after(durations_s)}",
    )


def _children(pid: int) -> list[int]:
    """Return the process ids of the ranks of a run, in rank order."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return sorted(map(int, file.read().split()))


def _after(durations_s: list[float]) -> str:
    return f"after {statistics.median(durations_s):.1f} s (maximum {max(durations_s):.1f} s)"


def lost_rank(workspace: Workspace, tries: int, rng: random.Random) -> list[Result]:
    """Kill a rank, let it raise an error, or suspend it, `tries` times each."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise KeyError("a bug")

    def suspend() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    cases: dict[str, tuple[Any, str, float]] = {
        "is killed": (kill, "was killed by SIGKILL", 10.0),
        "raises": (fail, "raised KeyError: 'a bug'", 10.0),
        "is suspended": (suspend, "is suspended (SIGSTOP)", 15.0),
    }
    results = []
    for case, (fault, cause, limit_s) in cases.items():
        passed, durations_s = 0, []
        for number in range(tries):
            run_dir = workspace.path(f"lost_{case.replace(' ', '_')}_{number}")
            rank, batch = rng.randint(0, 1), rng.randint(2, BATCHES - 1)
            struck = run_dir.with_suffix(".struck")  # the time of the fault

            def strike(
                module: Classifier, count: int, target: Any = (rank, batch), struck: Any = struck, fault: Any = fault
            ) -> None:
                if (module.global_rank, count) == target:
                    struck.write_text(str(time.monotonic()))
                    fault()

            with workspace.injecting(strike):
                error = workspace.run(
                    "trainer.devices=2", "elastic.timeout_s=5", "elastic.shutdown_s=1", run_dir=run_dir
                )
            durations_s.append(time.monotonic() - float(struck.read_text()))
            named = error.startswith(f"RankError: rank {rank} ") and cause in error
            passed += named and durations_s[-1] < limit_s and RunRecord(run_dir).read()["exit_code"] == 5
        results.append(
            Result(
                "lost_rank",
                f"a rank {case}: the error names rank and cause, and all ranks exit within {limit_s:.0f} s",
                passed,
                tries,
                _after(durations_s) + (", elastic.timeout_s=5" if fault is suspend else ""),
            )
        )
    return results


def restarts(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Kill a rank twice with elastic.max_restarts=2, which restarts it from the last checkpoint."""
    overrides = ("trainer.devices=2",)
    expected, passed = workspace.uninterrupted(*overrides), 0
    for number in range(tries):
        run_dir = workspace.path(f"restarted_{number}")
        points = sorted(rng.sample(range(2, BATCHES - 1), 2))

        def strike(module: Classifier, count: int, points: Any = points) -> None:
            attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
            if module.global_rank == 1 and attempt < 2 and module.global_step >= points[attempt] // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        with workspace.injecting(strike):
            result = workspace.run(*overrides, "elastic.max_restarts=2", run_dir=run_dir)
        num_restarts = len(RunRecord(run_dir).read()["restarts"])
        passed += result == "finished" and identical(expected, run_dir) and num_restarts == 2
    return Result(
        "restarts",
        "a rank is killed twice, elastic.max_restarts=2: the run finishes, bit-identical",
        passed,
        tries,
    )


def repeat(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Repeat a run with the same seed and other numbers of DataLoader workers."""
    passed = 0
    overrides = ("augmentation=inception",)
    expected = workspace.uninterrupted(*overrides)
    for number, workers in enumerate((0, 1, 2, 4)[:tries]):
        run_dir = workspace.path(f"repeated_{number}")
        result = workspace.run(*overrides, f"data.num_workers={workers}", run_dir=run_dir)
        passed += result == "finished" and identical(expected, run_dir)
    assert content(expected / LAST)["global_step"] == 12
    return Result(
        "repeat",
        "the same seed again, with 0, 1, 2 and 4 DataLoader workers: bit-identical",
        passed,
        min(tries, 4),
    )
