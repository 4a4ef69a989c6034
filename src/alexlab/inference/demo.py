"""A page on this machine: drop a picture, see what a trained net says of it and which part of it speaks for that."""

import asyncio
import base64
import io
import threading
from collections.abc import Callable
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

from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode_bytes
from alexlab.errors import ImageError
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.explain.gradcam import grad_cam, overlaid
from alexlab.output.escape import shown
from alexlab.pages import html

TOP_K = 5
SHOWN = 320  # pixels of a picture's side on the page
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PAGE = """<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>
<title>TITLE</title><style>STYLE
#drop { border: 2px dashed #8888; border-radius: 8px; padding: 2rem 1rem; text-align: center; cursor: pointer; }
#drop.over { border-color: #3b82f6; } #drop:focus-visible { outline: 2px solid #3b82f6; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; } .pictures img { width: 320px; max-width: 100%; }
.bar { display: grid; grid-template-columns: minmax(6rem, 14rem) 1fr 4rem; gap: .6rem; align-items: center; margin: .2rem 0; }
.bar i { display: block; height: .8rem; background: #3b82f6; border-radius: 3px; }
</style><h1>TITLE</h1>
<div id=drop tabindex=0 role=button>Drop a picture here, or click to choose one (at most LIMIT MB)</div>
<input id=file type=file accept='image/*' hidden><p id=error class=bad role=alert></p><div id=found></div>
<script>
const drop = document.getElementById('drop'), file = document.getElementById('file');
const error = document.getElementById('error'), found = document.getElementById('found');
const element = (name, parent, text) => { const e = parent.appendChild(document.createElement(name));
  if (text !== undefined) e.textContent = text; return e; };
async function ask(picture) {
  error.textContent = ''; found.textContent = 'looking ...';
  if (picture.size > BYTES) { found.textContent = ''; error.textContent = 'a picture must have at most LIMIT MB'; return; }
  const answer = await fetch('predict', {method: 'POST', body: picture}).catch(problem => ({ok: false, problem}));
  const content = answer.json ? await answer.json() : {error: 'the server does not answer'};
  found.textContent = '';
  if (!answer.ok) { error.textContent = content.error; return; }
  const pictures = element('div', found); pictures.className = 'pictures';
  const cam = 'what speaks for ' + content.answers[0].class;
  for (const [name, data] of [['what the net sees', content.seen], [cam, content.cam]]) {
    const figure = element('figure', pictures), image = element('img', figure);
    image.src = data; image.alt = name; element('figcaption', figure, name);
  }
  for (const each of content.answers) {
    const bar = element('div', found); bar.className = 'bar';
    element('span', bar, each.class); element('i', element('span', bar)).style.width = 100 * each.prob + '%';
    element('span', bar, each.prob.toFixed(4));
  }
}
drop.onclick = () => file.click(); drop.onkeydown = event => { if (event.key === 'Enter') file.click(); };
file.onchange = () => { if (file.files[0]) ask(file.files[0]); };
for (const name of ['dragover', 'dragleave', 'drop']) drop.addEventListener(name, event => {
  event.preventDefault(); drop.className = name === 'dragover' ? 'over' : '';
  if (name === 'drop' && event.dataTransfer.files[0]) ask(event.dataTransfer.files[0]); });
</script>"""


def demo(trained: TrainedModel, view: Callable[[Tensor], Tensor], *, max_bytes: int, hosts: list[str]) -> Starlette:
    """The application.

    Args:
        trained: the net.
        view: from a uint8 image (C, H, W) to what the net takes.
        max_bytes: of a picture; a larger one is refused before it is read to its end.
        hosts: names that a browser may call it by: another site cannot reach it through a name of its own.
    """
    page = PAGE.replace("STYLE", html.STYLE).replace("LIMIT", f"{max_bytes / 1e6:g}").replace("BYTES", str(max_bytes))
    page = page.replace("TITLE", html.text(trained.description))
    turn = threading.Lock()  # one picture at a time: two would only slow each other down

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def predict(request: Request) -> Response:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > max_bytes:
                return _refused(413, f"a picture must have at most {max_bytes / 1e6:g} MB")
        try:
            return JSONResponse(await asyncio.to_thread(answer, bytes(content)), headers=HEADERS)
        except ImageError as error:
            return _refused(400, f"cannot read this picture: {error.reason}")

    def answer(content: bytes) -> dict[str, Any]:
        with turn:
            return look(trained, view, content)

    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    return Starlette(routes=[Route("/", index), Route("/predict", predict, methods=["POST"])], middleware=middleware)


def look(trained: TrainedModel, view: Callable[[Tensor], Tensor], content: bytes) -> dict[str, Any]:
    """The first answers to a picture, what the net sees of it and its Grad-CAM for the first answer, plain data.

    Raises:
        ImageError: when it cannot be read.
    """
    image = view(to_tensor(decode_bytes(content, trained.decoding)))
    with torch.inference_mode():
        probs = trained.inference.probs(image[None])[0].cpu()
    best = probs.topk(min(TOP_K, len(probs)))
    cam = grad_cam(trained.inference, image[None], best.indices[:1])[0]
    answers = [
        {"class": shown(trained.names[number]), "prob": prob}
        for number, prob in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    seen = image.permute(1, 2, 0).expand(-1, -1, 3).numpy()
    return {"answers": answers, "seen": _data_url(seen), "cam": _data_url(overlaid(image, cam).numpy())}


def _data_url(pixels: np.ndarray) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) < SHOWN:
        image = image.resize((SHOWN, SHOWN), Image.Resampling.NEAREST if max(image.size) < 100 else None)
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _refused(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status, headers=HEADERS)
