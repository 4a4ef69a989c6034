"""Checks of a config before its ranks are forked."""

import os
from multiprocessing.connection import Connection

import torch

from alexlab.config.data import data_config
from alexlab.config.validate import check_objects
from support.commands import FORKED
from support.runs import plain


def send_num_threads(sender: Connection) -> None:
    """Send the number of threads before and after the checks; runs in a new process with two OpenMP threads."""
    torch.set_num_threads(2)
    config = plain("model=alexnet_quarter", "data=digits", "metrics=f1")
    splits = data_config(config).find_splits()
    before = len(os.listdir("/proc/self/task"))
    check_objects(config, splits, num_ranks=1)
    sender.send((before, len(os.listdir("/proc/self/task"))))


def test_the_checks_start_no_threads() -> None:
    """A rank that is forked after OpenMP's threads have started waits for ever in its first parallel operation."""
    receiver, sender = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=send_num_threads, args=(sender,))
    process.start()
    assert receiver.poll(60)
    before, after = receiver.recv()
    process.join()
    receiver.close()
    sender.close()
    assert before == after
