"""Where the ranks of one machine meet: a store that the launcher's process serves, on 127.0.0.1 only.

PyTorch's own rendezvous is made for many machines. On one, its store listens to the network, it takes half a second to agree
with nobody, and in PyTorch 2.15 ranks that are started again find the addresses of the lost ones.
"""

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

HERE = "127.0.0.1"
BACKEND = "alexlab"


class OneMachine(RendezvousHandler):
    """A rendezvous of one launcher with itself, with a new store for each attempt.

    Args:
        run_id: of the launch.
        timeout_s: how long a rank waits for what another one is to say.
    """

    def __init__(self, run_id: str, timeout_s: float) -> None:
        self.run_id, self.timeout = run_id, timedelta(seconds=timeout_s)
        self.closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """A store, and where the ranks find it."""
        listener = socket.create_server((HERE, 0))
        port = listener.getsockname()[1]
        self.store = TCPStore(
            HERE,
            port,
            is_master=True,
            timeout=self.timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        return RendezvousInfo(self.store, 0, 1, RendezvousStoreInfo(HERE, port))

    def is_closed(self) -> bool:
        return self.closed

    def set_closed(self) -> None:
        self.closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        self.closed = True
        return True


def _made(parameters: RendezvousParameters) -> RendezvousHandler:
    return OneMachine(parameters.run_id, float(parameters.get("timeout", 600.0)))


rendezvous_handler_registry.register(BACKEND, _made)
