"""Where the ranks of a round meet: a store that the launcher of the first node serves, on the address that the nodes use.

On one machine that is 127.0.0.1. A round has a store of its own: in PyTorch 2.15 ranks that are started again find the
addresses of the lost ones in a store that stays.
"""

from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from alexlab.rounds import Place

BACKEND = "alexlab"


class RoundOver(Exception):  # noqa: N818 - no error
    """The ranks of this node were ended, since the round is over on another one."""


class Round(RendezvousHandler):
    """The rendezvous of one round, whose places are known.

    Args:
        run_id: of the launch.
        place: of this node.
        over: whether the round has ended on another node.
        timeout_s: how long a rank waits for what another one is to say.
    """

    def __init__(self, run_id: str, place: Place, over: Callable[[], bool], timeout_s: float) -> None:
        self.run_id, self.place, self.over, self.timeout = run_id, place, over, timedelta(seconds=timeout_s)
        self.begun = self.closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The store of the round; a second one there is not."""
        if self.begun:
            raise RoundOver
        self.begun = True
        place, listener = self.place, self.place.listener
        self.store = TCPStore(
            place.address,
            place.port,
            is_master=place.number == 0,
            timeout=self.timeout,
            wait_for_workers=False,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        return RendezvousInfo(self.store, place.number, place.count, RendezvousStoreInfo(place.address, place.port))

    def is_closed(self) -> bool:
        return self.closed

    def set_closed(self) -> None:
        self.closed = True

    def num_nodes_waiting(self) -> int:
        """Asked all the time: a number other than 0 makes the launcher end the ranks."""
        return int(self.over())

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        self.closed = True
        return True


def _made(parameters: RendezvousParameters) -> RendezvousHandler:
    options = parameters.config
    return Round(parameters.run_id, options["place"], options["over"], float(options["timeout"]))


rendezvous_handler_registry.register(BACKEND, _made)
