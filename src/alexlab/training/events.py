"""TensorBoard event file that buffers events in memory while the disk is full."""

import io
import itertools
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """New event file in a folder.

    Args:
        log_dir: folder of the event file.
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
        self.size = 0  # bytes of complete events in the file
        self.waiting = io.BytesIO()
        self.records = RecordWriter(self.waiting)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        return self.log_dir

    def add_event(self, event: Event) -> None:
        """Buffer an event until `flush`."""
        self.records.write(event.SerializeToString())

    def flush(self) -> None:
        """Write the buffered events. After an error they stay buffered, and the next flush overwrites the partial write.

        Raises:
            OSError: if the events cannot be written.
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
        """Write the buffered events. The file is not kept open."""
        self.flush()
