"""Local S3 server for tests."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
START_S = 60.0
SERVE = """
import json, logging, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(json.dumps(server.get_host_and_port()), flush=True)
time.sleep(3600)
"""


@contextmanager
def s3() -> Iterator[Any]:
    """Start a server, point the environment at it and yield a boto3 client; stop the server afterwards."""
    import boto3

    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    host, port = json.loads(process.stdout.readline())
    address = f"http://{host}:{port}"
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        try:
            urllib.request.urlopen(f"{address}/moto-api/").close()
            break
        except OSError:
            time.sleep(0.1)
    old_environ = dict(os.environ)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=address)
    try:
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
    finally:
        os.environ.clear()
        os.environ.update(old_environ)
        process.kill()
        process.wait()
        process.stdout.close()
