"""Runner of parts: each in its own process, killed at its time limit, so that a crash or a hang costs one part only."""

import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexlab.benchmark.gpu.results import Check, PartResult, Results
from alexlab.benchmark.interleave import redirect_output
from alexlab.benchmark.table import Row
from alexlab.distributed.hardware import die_with_parent
from alexlab.output.escape import print_line

FINISHED = "finished"


@dataclass(frozen=True)
class Part:
    """A group of checks or measurements.

    Args:
        name: name of the part and of its log.
        work: function that yields results as they are found; it runs in a forked process.
        limit_s: seconds after which the process is killed.
    """

    name: str
    work: Callable[[], Iterator[Check | Row | dict[str, Any]]]
    limit_s: float


def run_parts(parts: Sequence[Part], results: Results, *, total_s: float) -> None:
    """Run the parts in order and write the results after each of them.

    The calling process must not have started CUDA.

    Args:
        parts: parts to run.
        results: receiver of the results.
        total_s: seconds for all parts.
    """
    end_s = time.monotonic() + total_s
    for part in parts:
        result = PartResult(part.name)
        results.parts.append(result)
        results.write()
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            result.outcome = f"not run: the limit of {total_s:g} s was reached"
        else:
            start_s = time.monotonic()
            result.outcome = _run_part(part, min(part.limit_s, left_s), result, results)
            result.seconds = time.monotonic() - start_s
        results.write()
        outcomes = [check.outcome for check in result.checks]
        counts = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
        print_line(f"{part.name}: {result.outcome}, {result.seconds:.0f} s{': ' if counts else ''}{counts}")
        sys.stdout.flush()


def _run_part(part: Part, limit_s: float, result: PartResult, results: Results) -> str:
    """Run a part, add its results as they arrive and return its outcome."""
    log_path = results.out_dir / "logs" / f"{re.sub(r'[^a-z0-9]+', '_', part.name.lower())}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(part, sender, log_path, os.getpid()))
    end_s = time.monotonic() + limit_s
    try:
        process.start()
        sender.close()
        while True:
            if not receiver.poll(max(0.0, end_s - time.monotonic())):
                return f"killed after {limit_s:.0f} s; log: {log_path.name}"
            item = receiver.recv()
            if isinstance(item, str):
                return item if item == FINISHED else f"{item}; log: {log_path.name}"
            results.add(result, item)
    except (EOFError, OSError):
        process.join(5)
        return f"exited with code {process.exitcode}; log: {log_path.name}"
    finally:
        _kill(process)
        receiver.close()


def _kill(process: Any) -> None:
    """Kill a part with its process group; the candidates it has started die with it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has exited, or was killed before it has called setsid
        process.kill()
    process.join()


def _main(part: Part, sender: Any, log_path: Path, parent: int) -> None:
    """Run a part in its process."""
    os.setsid()
    die_with_parent(parent)
    redirect_output(log_path)
    try:
        for item in part.work():
            sender.send(item)
        outcome = FINISHED
    except BaseException as error:
        traceback.print_exc()
        outcome = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    sender.send(outcome)
