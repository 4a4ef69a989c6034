"""`torch.compile` of a net."""

from torch import nn


def compile_net(net: nn.Module, *, enabled: bool = False, mode: str | None = None, backend: str = "inductor") -> None:
    """Lets a net compile itself at its first call; the names of its parameters stay.

    Args:
        net: any module.
        enabled: else nothing is done.
        mode: of `torch.compile`: None, `reduce-overhead` (CUDA graphs) or `max-autotune`.
        backend: of `torch.compile`.
    """
    if enabled:
        net.compile(mode=mode, backend=backend)
