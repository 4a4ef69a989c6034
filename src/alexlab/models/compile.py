"""`torch.compile` of a net."""

from torch import nn


def compile_net(net: nn.Module, *, enabled: bool = False, mode: str | None = None, backend: str = "inductor") -> None:
    """Compile a net in place at its first call, without renaming its parameters.

    Args:
        net: any module.
        enabled: if false, do nothing.
        mode: mode of `torch.compile`: None, `reduce-overhead` (CUDA graphs) or `max-autotune`.
        backend: backend of `torch.compile`.
    """
    if enabled:
        net.compile(mode=mode, backend=backend)
