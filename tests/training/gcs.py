"""Google Cloud Storage in a process of this machine: an emulator on loopback that gcsfs and TensorStore talk to."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import quote

# One request at a time: the emulator loses the generation of an object that two of them write at once.
SERVER = """
import sys, threading
from gcp_storage_emulator import server

one, handle = threading.Lock(), server.Router.handle

def alone(*args):
    with one:
        return handle(*args)

server.Router.handle = alone
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


class Emulator:
    """A running emulator with one bucket, named `bucket`.

    Attributes:
      env: what a process needs in its environment to take it for Google's.
    """

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}"
        self.env = {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "FSSPEC_GCS_TOKEN": "anon",
            "GCE_METADATA_ROOT": "127.0.0.1:1",  # nobody there to ask for credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks another service about the bucket
        }

    def names(self, prefix: str) -> list[str]:
        """The objects of the bucket whose name begins so."""
        with urllib.request.urlopen(f"{self.address}/storage/v1/b/bucket/o?prefix={quote(prefix)}") as answer:
            return [item["name"] for item in json.load(answer).get("items", [])]


@contextlib.contextmanager
def emulator() -> Iterator[Emulator]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], env={**os.environ, "PYTHONWARNINGS": "ignore"}, **quiet
    )
    running = Emulator(port)
    try:
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                running.names("")
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the emulator does not start")
        yield running
    finally:
        server.kill()
        server.wait()
