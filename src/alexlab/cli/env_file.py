"""`.env`: environment variables of a machine or project, read before the config is composed."""

import io
import os
from pathlib import Path

from alexlab.errors import ConfigError
from alexlab.records.layout import RUN_JSON, SWEEP_JSON

ENV = ".env"


def load_env_file() -> None:
    """Set the variables of `.env` in the working directory that are not set yet, see `read_env_file`."""
    for name, value in read_env_file().items():
        os.environ.setdefault(name, value)


def read_env_file() -> dict[str, str]:
    """Return the variables of `.env` in the working directory.

    The file of a run or sweep folder is ignored: somebody else may have written it.

    Raises:
        ConfigError: with the line, if the file cannot be read or a line is not NAME=VALUE.
    """
    path = Path(ENV)
    if not path.is_file() or any(Path(name).exists() for name in (RUN_JSON, SWEEP_JSON)):
        return {}
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{ENV} must be a readable UTF-8 file of lines NAME=VALUE; {error}") from error
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            raise ConfigError(f"{ENV}, line {binding.original.line}: must be NAME=VALUE or a comment")
    found = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in found.items() if value is not None and "\0" not in value}
