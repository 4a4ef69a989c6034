"""TensorBoard's event file, whose events wait in memory while the disk has no room for them."""

import io
import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter


class EventFile:
    """A new event file in a folder.

    Args:
        log_dir: the folder.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        os.makedirs(log_dir, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        for number in itertools.count():
            self.path = Path(log_dir) / f"{name}.{number}"
            try:
                self.path.touch(exist_ok=False)
                break
            except FileExistsError:
                continue
        self.size = 0  # bytes of the file that are whole events
        self.waiting = io.BytesIO()
        self.records = RecordWriter(self.waiting)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        return self.log_dir

    def add_event(self, event: Event) -> None:
        """Take an event; `flush` writes it."""
        self.records.write(event.SerializeToString())

    def flush(self) -> None:
        """Write the events that wait. After an error they still do, and the next flush cuts off what was begun.

        Raises:
            OSError: when the disk does not take them.
        """
        content = self.waiting.getvalue()
        with self.path.open("r+b") as file:
            file.seek(self.size)
            file.truncate()
            file.write(content)
        self.size += len(content)
        self.waiting.seek(0)
        self.waiting.truncate()

    def close(self) -> None:
        """Write the events that wait; the file is not kept open."""
        self.flush()


class EventFileWriter(SummaryWriter):
    """A SummaryWriter on such a file."""

    file_writer: Any
    all_writers: Any

    def _get_file_writer(self) -> Any:
        if self.file_writer is None:
            self.file_writer = FileWriter.__new__(FileWriter)  # its constructor starts the thread
            self.file_writer.event_writer = EventFile(self.log_dir)
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                for values in ({"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}):
                    self.file_writer.add_event(Event(step=self.purge_step, **values))
                self.purge_step = None
        return self.file_writer
