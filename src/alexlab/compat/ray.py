"""Private names of Ray."""

from __future__ import annotations


def local_ray_options(temp_dir: str) -> dict[str, str]:
    """Return arguments of `ray.init` that keep a local Ray on the loopback address, with its files in `temp_dir`.

    Works around: by default Ray listens on the machine's network address and leaves its logs in /tmp/ray. Checked with ray 2.60.
    """
    return {"_node_ip_address": "127.0.0.1", "_temp_dir": temp_dir}
