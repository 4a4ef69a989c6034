"""A short folder for the sockets of multiprocessing."""

import multiprocessing.util
import os
import tempfile

from alexlab.errors import ConfigError, DiskError

MAX_SOCKET_PATH = 107  # bytes: `sun_path` of <sys/un.h> without its terminator
SOCKET_PATH = "/pymp-12345678/listener-12345678"  # what multiprocessing appends to the temporary folder


def ensure_short_socket_paths() -> None:
    """Give multiprocessing another folder for its sockets if the path of the temporary folder is too long for one.

    Loader workers pass tensors through such sockets; without them the first batch never arrives.

    Raises:
        DiskError: if no temporary folder is usable.
        ConfigError: if no usable folder has a path that is short enough.
    """
    try:
        default = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise DiskError(
            f"the temporary folder must be writable and have free space: {error.strerror}; set TMPDIR to another one"
        ) from error
    if len(os.fsencode(default + SOCKET_PATH)) <= MAX_SOCKET_PATH:
        return
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        tempfile.tempdir = folder
        try:
            multiprocessing.util.get_temp_dir()  # created now, shared by forked processes, removed at exit
            return
        except OSError:
            continue
        finally:
            tempfile.tempdir = default
    raise ConfigError(
        f"TMPDIR must have at most {MAX_SOCKET_PATH - len(SOCKET_PATH)} bytes if neither /tmp nor /var/tmp is writable; "
        f"got {default}"
    )
