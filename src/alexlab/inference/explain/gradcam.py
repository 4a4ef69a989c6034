"""Grad-CAM: which part of an image speaks for a class (Selvaraju et al., arXiv 1610.02391, equations 1 and 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alexlab.inference.explain.activations import last_maps, watched
from alexlab.training.preprocessing import Inference


def grad_cam(inference: Inference, images: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """The parts of images that speak for a class.

    Args:
        inference: the net.
        images: uint8 (N, C, H, W).
        classes: int64 (N,), one for each image.
        layer: the name of the layer whose maps are weighed; None is the last maps of the net.

    Returns:
        float32 (N, H, W), from 0 to 1 for each image, 0 everywhere where nothing speaks for the class.
    """
    inputs = inference.normalize(images)
    layer = layer or last_maps(inference.net, inputs)
    kept: list[Tensor] = []

    def see(name: str, _: Tensor, output: Tensor) -> Tensor | None:
        if name != layer:
            return None
        kept.append(
            output.detach().clone().requires_grad_()
        )  # the net goes on from here: no gradients below are needed
        return kept[-1].clone()  # which a layer after it may change in place

    with torch.enable_grad(), watched(inference.net, see):
        logits = inference(images)
        logits.gather(1, classes.to(logits.device)[:, None]).sum().backward()
    maps = kept[-1]
    assert maps.grad is not None
    weights = maps.grad.mean((2, 3), keepdim=True)
    cam = F.relu((weights * maps.detach()).sum(1, keepdim=True))
    cam = cam / cam.amax((2, 3), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny)
    return F.interpolate(cam, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0].cpu()


def overlaid(image: Tensor, cam: Tensor) -> Tensor:
    """An image, uint8 (C, H, W), coloured by its map (H, W) in 0..1: uint8 (H, W, 3)."""
    import matplotlib

    colors = torch.from_numpy(matplotlib.colormaps["jet"](cam.numpy())[:, :, :3]).float()
    picture = image.float().permute(1, 2, 0).expand(-1, -1, 3) / 255
    return (255 * (0.55 * picture + 0.45 * colors)).round().clamp(0, 255).to(torch.uint8)
