"""Task of `python src/demo.py`: a web page to try a trained network."""

import importlib.util
import logging
import socket
from typing import Any

from alexlab.distributed.imports import import_lightning
from alexlab.errors import ConfigError, install_hint
from alexlab.records.run import Run
from alexlab.tasks import evaluate
from alexlab.tasks.counts import check_counts

log = logging.getLogger(__name__)

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def main(run: Run) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        AlexlabError: if the checkpoint or an option is invalid.
    """
    server, listener = create_server(run.config)
    server.run(sockets=[listener])


def create_server(config: dict[str, Any]) -> tuple[Any, socket.socket]:
    """Return the server, ready to run, and the socket that it listens on.

    Raises:
        AlexlabError: if the checkpoint or an option is invalid.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"demo.py needs the package {package}: {install_hint('demo')}")
    check_counts(config, {"port": 0})
    if not config["max_mb"] or config["max_mb"] <= 0:
        raise ConfigError(f"max_mb must be positive; got {config['max_mb']}")
    import_lightning()

    import uvicorn

    from alexlab.inference.demo import create_app

    host, port = str(config["host"]), config["port"]
    listener = _bind(host, port)
    model = evaluate.load_model(config)
    # A Host header has brackets around IPv6 addresses.
    hosts = [*LOCAL_HOSTS, "[::1]"] if host in LOCAL_HOSTS else ["*"]
    app = create_app(model, max_bytes=round(config["max_mb"] * 1e6), hosts=hosts)
    if host not in LOCAL_HOSTS:
        log.warning(
            "listening on %s: anyone who can reach this machine can use the page; there is no authentication", host
        )
    address = f"[{host}]" if ":" in host else host
    log.info("%s: http://%s:%d, until Ctrl-C", model.description, address, listener.getsockname()[1])
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)), listener


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}, port {port}: {error}; choose another host or port") from error
    return listener


check = evaluate.check
