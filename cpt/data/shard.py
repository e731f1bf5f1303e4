"""A shard that is being written."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.megatron import paths


class ShardState:
    """A shard that is being written: what is committed of it, and what waits in memory.

    The digests are of what was meant to be written; a disk that changes it afterwards is found out.
    """

    KEPT = ("name", "domain", "documents", "tokens", "text_bytes", "max_id", "closed")

    def __init__(self, name: str, domain: str):
        self.name, self.domain = name, domain
        self.documents = self.tokens = self.text_bytes = 0
        self.max_id = -1
        self.closed: dict[str, Any] | None = None
        self.waiting: list[np.ndarray] = []
        self.digests = {"bin": hashlib.sha256(), "sizes": hashlib.sha256()}

    def to_json(self) -> dict[str, Any]:
        digests = {suffix: digest.hexdigest() for suffix, digest in self.digests.items()}
        return {k: getattr(self, k) for k in self.KEPT} | {"digests": digests}

    def take_up(self, out: Path, kept: Mapping[str, Any], itemsize: int) -> bool:
        """Go on from what was committed: cut the files back to it; whether they hold it."""
        for k in self.KEPT:
            setattr(self, k, kept[k])
        if self.closed is not None:  # its digests are final; whoever opens the store compares them
            return paths(out / self.name)[0].is_file()
        for suffix, size in (("bin", self.tokens * itemsize), ("sizes", self.documents * 4)):
            path = out / f"{self.name}.{suffix}"
            if not path.is_file() or path.stat().st_size < size:
                return False
            os.truncate(path, size)
            with path.open("rb") as f:
                self.digests[suffix] = hashlib.file_digest(f, "sha256")
            if self.digests[suffix].hexdigest() != kept["digests"][suffix]:
                return False
        return True


def stem(split: str, domain: str) -> str:
    """How the shards of a domain are called: its name as far as a file may be called that, and a hash where it may not.

    The name depends on the domain alone, so it is the same whichever domains come before it.
    """
    if not domain:
        return split
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", domain)[:60]
    mark = "" if safe == domain else f"-{hashlib.blake2b(domain.encode(), digest_size=3).hexdigest()}"
    return f"{split}-{safe}{mark}"
