"""The two-tower AlexNet on two devices, one tower each, exchanging activations only where figure 2 of the paper does.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012, section 3.2.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alexlab.models.alexnet import AlexNet
from alexlab.models.layers import ResponseNorm

GROUPS = (1, 2, 1, 2, 2)  # groups of the five convolutions: only conv3 connects the towers


class PeerExchange:
    """Exchange of tensors with the process of the other tower.

    Args:
        tower: tower of this process, 0 or 1.
    """

    def __init__(self, tower: int) -> None:
        self.tower = tower
        self.sent_bytes = 0  # total sent by this process

    def exchange(self, own: Tensor) -> Tensor:
        """Send a tensor to the other process and return its tensor of the same shape and dtype."""
        sent = own.movedim(1, -1).contiguous()  # channels last: convolution outputs need no copy
        received = torch.empty_like(sent)
        # As bytes, because gloo does not support bfloat16.
        halves = [sent.view(torch.uint8), received.view(torch.uint8)]
        other = 1 - self.tower
        requests = [torch.distributed.P2POp(torch.distributed.isend, halves[0], other)]
        requests.append(torch.distributed.P2POp(torch.distributed.irecv, halves[1], other))
        for request in torch.distributed.batch_isend_irecv(requests):
            request.wait()
        self.sent_bytes += sent.nbytes
        return received.movedim(-1, 1)

    def concat(self, own: Tensor, other: Tensor) -> Tensor:
        """Concatenate both halves along the channels, tower 0 first."""
        return torch.cat((own, other) if self.tower == 0 else (other, own), 1)


class _GatherHalves(torch.autograd.Function):
    """Concatenation of both halves, (N, C / 2, ...) to (N, C, ...). A half's gradient is the sum over both towers."""

    @staticmethod
    def forward(ctx: Any, half: Tensor, peer: PeerExchange) -> Tensor:
        ctx.peer = peer
        return peer.concat(half, peer.exchange(half))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        halves = gradient.chunk(2, 1)
        return halves[ctx.peer.tower] + ctx.peer.exchange(halves[1 - ctx.peer.tower]), None


class _GatherLogits(torch.autograd.Function):
    """Concatenation of both halves of the logits. Both towers compute the same loss, so no gradient is exchanged."""

    @staticmethod
    def forward(ctx: Any, half: Tensor, peer: PeerExchange, num_outputs: int) -> Tensor:
        ctx.start, ctx.count = peer.tower * (num_outputs - num_outputs // 2), half.shape[1]
        longest = num_outputs - num_outputs // 2
        padded = nn.functional.pad(half, (0, longest - half.shape[1]))
        return peer.concat(padded, peer.exchange(padded))[:, :num_outputs]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[:, ctx.start : ctx.start + ctx.count], None, None


class _Dropout(nn.Dropout):
    """Dropout of half a layer, using its half of the mask that one device would draw for the whole layer."""

    def __init__(self, p: float, tower: int) -> None:
        super().__init__(p)
        self.tower = tower

    def forward(self, half: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return half
        whole = half.new_empty(len(half), 2 * half.shape[1]).bernoulli_(1 - self.p).div_(1 - self.p)
        return half * whole.chunk(2, 1)[self.tower]


class Tower(nn.Module):
    """One tower of an AlexNet, with the parameter names of the whole net and half of each parameter along its first axis.

    Args:
        whole: whole net; its parameters are copied in halves.
        tower: 0 or 1, for the first or the second half of each layer.

    Raises:
        ValueError: if the net does not consist of two towers.
    """

    def __init__(self, whole: nn.Module, tower: int) -> None:
        super().__init__()
        check_towers(whole)
        assert isinstance(whole, AlexNet)
        self.peer = PeerExchange(tower)
        self._whole = (copy.deepcopy(whole).to("meta"),)  # in a tuple, so that it is not registered as a submodule
        self.shapes = {name: value.shape for name, value in whole.state_dict().items()}  # shapes in the whole net
        self.num_outputs = self.shapes[[name for name in self.shapes if name.endswith(".weight")][-1]][0]
        convs = [(name, layer) for name, layer in whole.features.named_children() if isinstance(layer, nn.Conv2d)]
        self.gathered = [name for name, layer in convs[1:] if layer.groups == 1]  # their input comes from both towers
        self.features = nn.Sequential()
        for name, layer in whole.features.named_children():
            self.features.add_module(name, _half(layer, tower))
        self.avgpool = whole.avgpool
        self.classifier = nn.Sequential()
        for name, layer in whole.classifier.named_children():
            self.classifier.add_module(name, _half(layer, tower))
        self.register_load_state_dict_pre_hook(_load_halves)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), the same on both towers, to the logits (N, K) of the whole net."""
        values = images
        for name, layer in self.features.named_children():
            values = layer(_GatherHalves.apply(values, self.peer) if name in self.gathered else values)
        values = torch.flatten(self.avgpool(values), 1)
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                values = _GatherHalves.apply(values, self.peer)
            values = layer(values)
        logits: Tensor = _GatherLogits.apply(values, self.peer, self.num_outputs)
        return logits

    @property
    def whole(self) -> AlexNet:
        """The whole net, on the meta device."""
        return self._whole[0]

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return this tower's half of a tensor of the whole net."""
        return _chunk(whole, self.peer.tower) if whole.shape == self.shapes[name] else whole


def check_towers(net: nn.Module) -> None:
    """Raise ValueError unless a net is an AlexNet with two towers."""
    convs = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    groups = tuple(layer.groups for layer in convs)
    widths = [layer.out_channels for layer in convs]
    hidden = [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)][:-1]
    norms = all(layer.groups == 2 for layer in net.modules() if isinstance(layer, ResponseNorm))
    towers = groups[:1] == (1,) and 2 in groups and set(groups) == {1, 2}
    if not isinstance(net, AlexNet) or not towers or any(width % 2 for width in [*widths, *hidden]) or not norms:
        raise ValueError(
            f"two towers need an AlexNet with model.groups of 1 and 2 that begin with 1, such as {list(GROUPS)}, even widths "
            f"and model.norm=lrn within towers only, such as model=alexnet_two_tower; got {type(net).__name__} with groups "
            f"{list(groups)} and widths {[*widths, *hidden]}"
        )
    if [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)][-1] < 2:
        raise ValueError("two towers need at least two outputs, one for each tower: use loss=cross_entropy")


def _load_halves(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Reduce a state dict of the whole net to this tower's half before it is loaded."""
    assert isinstance(module, Tower)
    for name in module.shapes:
        if prefix + name in state:
            state[prefix + name] = module.part(name, state[prefix + name])


def _chunk(whole: Tensor, tower: int) -> Tensor:
    """Return half of a tensor along its first axis; the first half of an odd length is longer. Scalars are shared."""
    return whole.chunk(2)[tower] if whole.dim() else whole


def _half(layer: nn.Module, tower: int) -> nn.Module:
    """Reduce a layer to half of its outputs, in place."""
    if isinstance(layer, nn.Dropout):
        return _Dropout(layer.p, tower)
    for name, value in layer.named_parameters(recurse=False):
        setattr(layer, name, nn.Parameter(_chunk(value.detach(), tower).clone(memory_format=torch.preserve_format)))
    for name, buffer in layer.named_buffers(recurse=False):
        setattr(layer, name, _chunk(buffer, tower).clone())
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.groups = layer.weight.shape[0], 1
        layer.in_channels = layer.weight.shape[1]
    elif isinstance(layer, nn.Linear):
        layer.out_features = layer.weight.shape[0]
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.num_features = layer.weight.shape[0]
    elif isinstance(layer, ResponseNorm):  # normalizes within one tower
        layer.groups = 1
    return layer


def merged(
    halves: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Return the tensors of the whole net, merged from those of both towers by name."""
    return {
        name: torch.cat((value, halves[1][name])) if value.shape != shapes[name] else value
        for name, value in halves[0].items()
    }
