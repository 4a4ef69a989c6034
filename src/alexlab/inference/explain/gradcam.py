"""Grad-CAM: the parts of an image that are evidence for a class (Selvaraju et al., arXiv 1610.02391, equations 1 and 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alexlab.inference.explain.activations import call_on_layers, last_feature_layer
from alexlab.training.preprocessing import Inference


def grad_cam(inference: Inference, images: Tensor, classes: Tensor) -> Tensor:
    """Return the Grad-CAM of images, by the last feature maps of the network.

    Args:
        inference: network with its preprocessing.
        images: uint8 (N, C, H, W).
        classes: class to explain for each image, int64 (N,).

    Returns:
        float32 (N, H, W), scaled to a maximum of 1 per image; zero everywhere if nothing is evidence for the class.
    """
    inputs = inference.normalize(images)
    layer = last_feature_layer(inference.net, inputs)
    maps: list[Tensor] = []

    def keep(name: str, _: Tensor, output: Tensor) -> Tensor:
        maps.append(output.detach().clone().requires_grad_())  # detached: the layers below need no gradients
        return maps[-1].clone()  # the next layer may modify it in place

    with torch.enable_grad(), call_on_layers(inference.net, keep, [layer]):
        outputs = inference.net(inputs)
        # One logit is evidence for both classes; (0, z) would have no gradient for the first.
        logits = torch.cat([-outputs, outputs], 1) if outputs.shape[1] == 1 else outputs
        evidence = logits.gather(1, classes.to(logits.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(evidence, maps[-1])  # not backward(), which keeps gradients of the weights
    weights = gradient.mean((2, 3), keepdim=True)
    cam = F.relu((weights * maps[-1].detach()).sum(1, keepdim=True))
    cam = cam / cam.amax((2, 3), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny)
    return F.interpolate(cam, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0].cpu()


def overlaid(image: Tensor, cam: Tensor) -> Tensor:
    """Return an image under a heat map: grey where nothing is evidence, then green and yellow.

    Args:
        image: uint8 (C, H, W).
        cam: values in 0..1, (H, W).

    Returns:
        uint8 (H, W, 3).
    """
    import matplotlib

    colors = torch.from_numpy(matplotlib.colormaps["viridis"](cam.numpy())[:, :, :3]).float()
    grey = image.float().mean(0)[:, :, None] / 255
    alpha = 0.6 * cam[:, :, None]
    return (255 * ((1 - alpha) * 0.75 * grey + alpha * colors)).round().clamp(0, 255).to(torch.uint8)
