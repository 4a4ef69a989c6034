"""`python src/demo.py`: a page to try a trained net. Imports no torch at its top."""

import importlib.util
import logging
import socket
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError
from alexlab.tasks import evaluate

log = logging.getLogger(__name__)

LOCAL = ("127.0.0.1", "localhost", "::1")


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Serves the page until Ctrl-C.

    Args:
        config: the composed config, plain data.
        run_dir: the folder of the log.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        AlexlabError: in one sentence.
    """
    server, listening = serve(config)
    server.run(sockets=[listening])


def serve(config: dict[str, Any]) -> tuple[Any, socket.socket]:
    """The server, ready to run, and the socket that it listens on.

    Raises:
        AlexlabError: in one sentence.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"demo.py needs the package {package}: pip install -e '.[demo]'")
    if config["max_mb"] <= 0:
        raise ConfigError(f"max_mb must be positive; got {config['max_mb']}")
    import uvicorn

    from alexlab.config import build
    from alexlab.inference.checkpoint import load_checkpoint
    from alexlab.inference.demo import demo

    host, port = str(config["host"]), config["port"]
    listening = _bound(host, port)
    trained = load_checkpoint(config["ckpt"], class_names=config["class_names"], device=config["device"])
    hosts = list(LOCAL) if host in LOCAL else ["*"]
    app = demo(trained, build.eval_view(trained.config), max_bytes=int(config["max_mb"] * 1e6), hosts=hosts)
    if host not in LOCAL:
        log.warning("listening on %s: everybody who can reach this machine can use the page", host)
    shown = f"[{host}]" if ":" in host else host
    log.info("%s: http://%s:%d, until Ctrl-C", trained.description, shown, listening.getsockname()[1])
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)), listening


def _bound(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(f"host and port must be free to listen on; got {host} and {port}: {error}") from error
    return listening


def check(config: dict[str, Any]) -> None:
    """Looks at what can be known before the net is read."""
    evaluate.check(config)
