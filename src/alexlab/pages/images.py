"""Images as data URLs, for pages that consist of one file."""

import base64
import io

import numpy as np
from PIL import Image

THUMBNAIL_HEIGHT = 112  # pixels


def data_url(content: bytes, media_type: str = "image/png") -> str:
    """Return an encoded image as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def thumbnail_url(pixels: np.ndarray, height: int = THUMBNAIL_HEIGHT) -> str:
    """Return a thumbnail as a data URL: a JPEG, or a PNG whose pixels show if the image has less than half the height.

    Args:
        pixels: uint8 (H, W, 1) or (H, W, 3).
        height: maximum height in pixels; a smaller image is enlarged by an integer factor.
    """
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    factor = min(height // image.height, 2 * height // image.width)
    content = io.BytesIO()
    if factor > 1:
        image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST).save(content, "PNG")
        return data_url(content.getvalue())
    image.thumbnail((2 * height, height))
    image.save(content, "JPEG", quality=85)
    return data_url(content.getvalue(), "image/jpeg")
