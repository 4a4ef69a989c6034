"""DistributedDataParallel with the options of the `trainer` node: communication hook, static graph and bucket size."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from alexlab.errors import ConfigError

ELEMENT_BYTES = {"fp16": 2, "bf16": 2}  # the other hooks send elements of the gradient's dtype
# PowerSGD on the digits, 2 ranks, 20 epochs, test top-1 of seeds 1 and 2: rank 4 0.967, 0.970; rank 16 0.970, 0.985; without
# it 0.985, 0.985. With rank 4 from step 2 on 0.956, from step 100 on 0.985 (seed 1; docs/results.md).
RANK = 16
START_STEP = 10  # earlier steps send whole gradients
MAX_BUCKET_MB = 100_000

log = logging.getLogger(__name__)


def bf16_hook(state: Any, bucket: GradBucket) -> Future[Tensor]:
    """Return the average in bfloat16. Without CUDA, DDP refuses PyTorch's own hook by name, although Gloo supports it."""
    return bf16_compress_hook(state, bucket)


def powersgd_hook(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Return PowerSGD's average; on the CPU, wait for it.

    The hook starts its second and third all-reduce when the previous one completes. With Gloo, those of several buckets complete
    in an order that differs between ranks, which would then reduce P of one bucket with Q of another, or hang.
    """
    future = powerSGD_hook(state, bucket)
    if not bucket.buffer().is_cuda:
        future.wait()
    return future


HOOKS: dict[str, Callable[[Any, GradBucket], Future[Tensor]] | None] = {
    "none": None,
    "fp16": fp16_compress_hook,
    "bf16": bf16_hook,
    "powersgd": powersgd_hook,
}


@dataclass(frozen=True)
class DDPOptions:
    """Keys of the `trainer` node that are not arguments of lightning.Trainer.

    Args:
        comm_hook: gradient compression for the all-reduce: none, fp16, bf16 or powersgd.
        static_graph: assume that every step uses the same parameters.
        find_unused_parameters: look for parameters that a step does not use.
        bucket_cap_mb: size of the gradient buckets, in MB; None keeps PyTorch's default.
    """

    comm_hook: str = "none"
    static_graph: bool = False
    find_unused_parameters: bool = False
    bucket_cap_mb: float | None = None

    def __post_init__(self) -> None:
        if self.comm_hook not in tuple(HOOKS):  # a list is not hashable
            raise ConfigError(f"trainer.comm_hook must be one of {', '.join(HOOKS)}; got {_shown(self.comm_hook)}")
        for name in ("static_graph", "find_unused_parameters"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"trainer.{name} must be true or false; got {_shown(getattr(self, name))}")
        size: Any = self.bucket_cap_mb
        if size is not None and (
            isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size <= MAX_BUCKET_MB
        ):
            raise ConfigError(
                f"trainer.bucket_cap_mb must be null or a number of MB, above 0 and at most {MAX_BUCKET_MB}; "
                f"got {_shown(size)}"
            )

    @property
    def changed(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def check(self, *, accumulate: int, precision: Any) -> None:
        """Raise ConfigError for options that do not work with each other or with the rest of the config.

        Args:
            accumulate: `trainer.accumulate_grad_batches`.
            precision: `trainer.precision`.
        """
        if self.static_graph and self.find_unused_parameters:
            raise ConfigError(
                "trainer.static_graph=true needs trainer.find_unused_parameters=false, since it finds unused parameters itself "
                "in the first step"
            )
        # A backward pass without an all-reduce fails the reducer's assertion `expect_autograd_hooks_` (torch 2.15).
        if self.static_graph and accumulate > 1:
            raise ConfigError(
                "trainer.static_graph=true needs trainer.accumulate_grad_batches=1, since PyTorch fails on accumulated "
                f"gradients; got {accumulate}"
            )
        if self.comm_hook == "powersgd" and str(precision) in ("16", "16-mixed"):
            raise ConfigError(
                "trainer.comm_hook=powersgd does not work with trainer.precision=16-mixed, since an overflow that its scaler "
                "skips would stay in PowerSGD's error feedback; use bf16-mixed"
            )


KEYS = frozenset(field.name for field in fields(DDPOptions))


class HookedDDP(DDPStrategy):
    """DDPStrategy with a communication hook on every kind of device; Lightning registers hooks on CUDA only.

    Args:
        options: the options of the `trainer` node.
        timeout: how long a rank waits for the others.
    """

    def __init__(self, options: DDPOptions, timeout: timedelta) -> None:
        super().__init__(
            timeout=timeout,
            gradient_as_bucket_view=True,  # no second copy of the gradients
            static_graph=options.static_graph,
            find_unused_parameters=options.find_unused_parameters,
            bucket_cap_mb=options.bucket_cap_mb,
        )
        self.options = options

    def configure_ddp(self) -> None:
        """Wrap the module, register the hook with a new state, and log the traffic."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        log.info("%s", traffic(parameters, self.options.comm_hook, num_ranks=self.world_size))
        hook = HOOKS[self.options.comm_hook]
        if hook is not None:
            self.model.register_comm_hook(_powersgd_state() if hook is powersgd_hook else None, hook)


def _powersgd_state() -> PowerSGDState:
    # It logs each allocation; `traffic` reports the total.
    logging.getLogger(powerSGD_hook.__module__).setLevel(logging.WARNING)
    # In half precision, which uses Gram-Schmidt, a zero gradient would become NaN without an epsilon.
    return PowerSGDState(None, RANK, START_STEP, orthogonalization_epsilon=1e-8)


def gradient_bytes(parameters: Iterable[nn.Parameter], comm_hook: str) -> int:
    """Return the number of bytes that a rank all-reduces per optimizer step: its gradients as compressed by the hook."""
    return sum(
        (_powersgd_elements(parameter) if comm_hook == "powersgd" else parameter.numel())
        * ELEMENT_BYTES.get(comm_hook, parameter.element_size())
        for parameter in parameters
    )


def _powersgd_elements(parameter: nn.Parameter) -> int:
    """Return the number of elements of P (n, r) and Q (m, r), or of the gradient (n, m) if they save less than half."""
    rows = parameter.shape[0]
    columns = parameter.numel() // rows
    factors = (rows + columns) * min(rows, columns, RANK)
    return factors if 2 * factors < parameter.numel() else parameter.numel()


def traffic(parameters: Iterable[nn.Parameter], comm_hook: str, *, num_ranks: int) -> str:
    """Return a log line with the bytes that the ranks send per step."""
    parameters = list(parameters)
    reduced, whole = (gradient_bytes(parameters, hook) / 1e6 for hook in (comm_hook, "none"))
    sent = 2 * (num_ranks - 1) / num_ranks * reduced
    line = f"gradients: {reduced:.2f} MB all-reduced per step; each of {num_ranks} ranks sends {sent:.2f} MB in a ring"
    if comm_hook == "none":
        return line
    line += f"; trainer.comm_hook={comm_hook}, {whole:.2f} MB without it"
    if comm_hook == "powersgd":
        line += (
            f" and in the first {START_STEP} steps. Checkpoints do not contain PowerSGD's state, so the weights of a resumed run "
            "differ from those of an uninterrupted one"
        )
    return line


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
