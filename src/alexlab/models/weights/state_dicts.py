"""Search for the state dict in files of any program, and checks of its tensors."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alexlab import compat

State = dict[str, Tensor]

MAX_TENSORS = 5000  # loading time is quadratic, 7 s for 5000 tensors; torchvision's largest net has 1548
MAX_DEPTH = 4  # levels of nested dicts to search
# Keys of the weights in files of other programs, in order of preference; averaged weights come last.
STATE_DICT_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "net_state_dict", "network", "module"),
    *("weights", "params", "student", "encoder"),
    *("model_ema", "ema", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "ema_model", "params_ema"),
)
NO_WEIGHTS = ("optim", "sched", "scaler", "callback", "loops")  # substrings of keys without weights
# Prefixes added by DistributedDataParallel and AveragedModel, torch.compile, and attributes of a LightningModule.
PREFIXES = ("module.", "_orig_mod.", "net.", "model.", "network.", "ema_model.")
COUNTER = "n_averaged"  # buffer of torch.optim.swa_utils.AveragedModel


def find_state(content: Any, *, own: Collection[str] = ()) -> tuple[str, State]:
    """Return the key path of the state dict in a file, such as `model.state_dict`, and the state dict itself.

    Args:
        content: content of the file, from `alexlab.records.safe_load`.
        own: names of the net's tensors; known prefixes are removed until one of the names matches.

    Raises:
        ValueError: if there is no state dict, or several equally plausible ones.
    """
    found = dict(_state_dicts(content))
    shallowest = min((place.count(".") for place in found if place), default=0)
    if _has_matrix(found.get("", {})):
        place = ""
    else:
        choices = [name for name in found if name and name.count(".") == shallowest] or list(found)
        choices = [name for name in choices if _has_matrix(found[name])] or choices
        named = [name for name in STATE_DICT_KEYS if name in choices]
        if not choices:
            raise ValueError("it contains no tensors by name")
        if not named and len(choices) > 1:
            raise ValueError(
                f"it contains several: {', '.join(choices)}; save one of them: "
                f"torch.save(torch.load(FILE)[{choices[0]!r}], 'weights.pth')"
            )
        place = (named or choices)[0]
    return place, _unprefixed(found[place], own)


def _state_dicts(content: Any) -> Iterator[tuple[str, State]]:
    """Yield the key path and content of all dicts that contain tensors by name, outer ones first."""
    waiting, seen = [("", content)], set()
    for place, node in waiting:
        if id(node) in seen or place.count(".") >= MAX_DEPTH:
            continue
        seen.add(id(node))
        if compat.pickled_module(node) is not None:
            yield place, _of_module(node)
            continue
        children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
        state = {}
        for key, value in children:
            if isinstance(value, Tensor) and isinstance(key, str):
                state[key] = value
            elif isinstance(value, Mapping | list) and not any(word in str(key).lower() for word in NO_WEIGHTS):
                waiting.append((f"{place}.{key}" if place else str(key), value))
        if state:
            yield place, state


def _of_module(node: Any, prefix: str = "", depth: int = 0) -> State:
    """Return the state dict of a pickled module, which is loaded as a placeholder with its attributes.

    Raises:
        ValueError: if modules contain each other.
    """
    if depth > 100:
        raise ValueError("its modules must not contain each other")
    found = compat.pickled_module(node)
    if found is None:
        return {}
    tensors, children = found
    state = {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Tensor)}
    for name, child in children.items():
        state |= _of_module(child, f"{prefix}{name}.", depth + 1)
        if len(state) > MAX_TENSORS:
            break  # rejected by `check_state`
    return state


def _has_matrix(state: State) -> bool:
    return any(value.dim() > 1 for value in state.values())


def _unprefixed(state: State, own: Collection[str]) -> State:
    """Remove prefixes that wrappers add to the names of all weights."""
    if "module.n_averaged" in state or COUNTER in state:
        state = {key: value for key, value in state.items() if key.rpartition(".")[2] != COUNTER}
    while not any(key in own for key in state):
        layers = [key for key, value in state.items() if value.dim() > 1]
        prefix = next((prefix for prefix in PREFIXES if layers and all(key.startswith(prefix) for key in layers)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def check_state(state: Mapping[Any, Any]) -> None:
    """Raise ValueError unless these are finite, dense tensors by name, none of them larger than its storage."""
    if not state:
        raise ValueError("it contains no tensors by name")
    if len(state) > MAX_TENSORS:
        raise ValueError(f"a state dict must have at most {MAX_TENSORS:,} tensors; it has {len(state):,}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"a state dict must contain tensors by name; {str(key)[:80]!r} is a {type(value).__name__}"
            )
        name = key[:80]
        if value.is_meta or value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise ValueError(f"its tensors must be dense and real; {name} is {_kind(value)}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"its tensors must not be larger than their data in the file; {name} is {tuple(value.shape)}"
            )
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise ValueError(f"its weights must be finite; {name} contains NaN or infinity")


def _kind(value: Tensor) -> str:
    if value.is_meta:
        return "on the meta device"
    return "quantized" if value.is_quantized else f"{str(value.layout).removeprefix('torch.')}, {value.dtype}"


def load_state(net: nn.Module, state: State) -> None:
    """Load tensors into a net on the meta device, converted to the net's dtypes.

    Raises:
        ValueError: if they do not fit.
    """
    own = net.state_dict()
    converted = {key: value.to(own[key].dtype) if key in own else value for key, value in state.items()}
    try:
        net.load_state_dict(converted, assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


class ParameterLimit:
    """Context manager that limits the number of registered parameters, so that a config cannot define an endless net.

    Args:
        limit: maximum number of parameters.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def __enter__(self) -> None:
        self.handle: Any = nn.modules.module.register_module_parameter_registration_hook(self._registered)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _registered(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        self.count += 1
        if self.count > self.limit:
            raise ValueError("the net must not have more parameters than the file has tensors")
