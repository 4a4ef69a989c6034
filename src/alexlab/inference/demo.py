"""Web page to try a trained network: top predictions and Grad-CAM of a dropped image."""

import asyncio
import io
import threading
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor
from torch.utils.data import default_collate

from alexlab.data.decode import decode_bytes
from alexlab.errors import ImageError
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.explain.activations import convolutions
from alexlab.inference.explain.gradcam import grad_cam, overlaid
from alexlab.output.escape import shown
from alexlab.pages.images import data_url
from alexlab.pages.render import render

TOP_K = 5
MIN_SIDE = 320  # pixels; smaller images are enlarged
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(model: TrainedModel, *, max_bytes: int, hosts: list[str]) -> Starlette:
    """Return the web application.

    Args:
        model: trained model.
        max_bytes: maximum size of an upload; a larger one is rejected before it has been received completely.
        hosts: host names that requests may name, against DNS rebinding.
    """
    max_mb = f"{max_bytes / 1e6:g}"
    page = render("demo.html", title=model.description, max_mb=max_mb, max_bytes=max_bytes)
    lock = threading.Lock()  # predicting two images at once would only slow both down

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def predict(request: Request) -> Response:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > max_bytes:
                return _error(413, f"the image must be at most {max_mb} MB")
        try:
            return JSONResponse(await asyncio.to_thread(predict_one, bytes(content)), headers=HEADERS)
        except ImageError as error:
            return _error(400, f"cannot read the image: {error.reason}")

    def predict_one(content: bytes) -> dict[str, Any]:
        with lock:
            return predict_image(model, content)

    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    return Starlette(routes=[Route("/", index), Route("/predict", predict, methods=["POST"])], middleware=middleware)


def predict_image(model: TrainedModel, content: bytes) -> dict[str, Any]:
    """Return the top predictions for an image file, and images by caption, as plain data.

    The images are the input of the network and, for a single network, Grad-CAM of the first class.

    Raises:
        ImageError: if the image cannot be read.
    """
    inputs = model.reader()(partial(decode_bytes, content))
    with torch.inference_mode():
        probs = model.inference.probs(default_collate([inputs]))[0].cpu()
    top = probs.topk(min(TOP_K, len(probs)))
    predictions = [
        {"class": shown(model.names[number]), "prob": prob}
        for number, prob in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    image: Tensor = inputs[0] if model.members else inputs
    images = [("input of the network", _png_url(image.permute(1, 2, 0).expand(-1, -1, 3).numpy()))]
    if not model.members and convolutions(model.single.net):
        cam = grad_cam(model.single, image[None], top.indices[:1])[0]
        name = f"evidence for the prediction {predictions[0]['class']} (Grad-CAM)"
        images.append((name, _png_url(overlaid(image, cam).numpy())))
    return {"predictions": predictions, "images": images}


def _png_url(pixels: np.ndarray) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) < MIN_SIDE:
        image = image.resize((MIN_SIDE, MIN_SIDE), Image.Resampling.NEAREST if max(image.size) < 100 else None)
    content = io.BytesIO()
    image.save(content, "PNG")
    return data_url(content.getvalue())


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status, headers=HEADERS)
