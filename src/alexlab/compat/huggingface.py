"""Private names of the Hugging Face hub's client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def offline_if_unreachable(timeout_s: float) -> Iterator[None]:
    """Let the client of the Hugging Face hub use only its cache if the hub does not answer.

    Works around: the client retries for 46 s, and reads the variable HF_HUB_OFFLINE only when it is imported. timm passes neither
    `local_files_only` nor `etag_timeout` on to it, and publishes no name to ask `try_to_load_from_cache` for. Checked with
    huggingface_hub 2.4 and timm 1.0.

    Args:
        timeout_s: time for an answer, in seconds.
    """
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout_s).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
