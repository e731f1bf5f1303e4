"""Maintenance and preemption as Google Cloud announces them: a minute or less before a machine is taken away.

A TPU VM gets no signal by then. What it is told stands in its metadata server, which a thread asks every few seconds.
"""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVERY_S = 5.0
NOTHING = {"instance/maintenance-event": "NONE", "instance/preempted": "FALSE"}


class MaintenanceWatch:
    """`with MaintenanceWatch(stop.ask): ...`; does nothing on machines that are not of Google Cloud.

    Args:
      tell: gets the name of an event, once.
      every_s: seconds between two questions.
    """

    def __init__(self, tell: Callable[[str], None], every_s: float = EVERY_S):
        self._tell, self._every_s, self._over = tell, every_s, threading.Event()
        self._server = os.environ.get("GCE_METADATA_HOST") or ("metadata.google.internal" if _on_google() else None)

    def __enter__(self) -> MaintenanceWatch:
        if self._server:
            threading.Thread(target=self._watch, name="maintenance", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def _watch(self) -> None:
        known: dict[str, str] = {}
        while True:
            for key, nothing in NOTHING.items():
                if (told := self._asked(key)) is None:
                    continue
                # What is announced already when the run starts has stopped it before, perhaps an hour ahead: to stop
                # again at once, at each relaunch, would be to wait for it.
                if told not in (nothing, known.setdefault(key, told)):
                    return self._tell(f"{key.rpartition('/')[2]} {told}")
                known[key] = told
            if self._over.wait(self._every_s):
                return

    def _asked(self, key: str) -> str | None:
        """What the server says; None where it does not answer now, which says nothing."""
        url = f"http://{self._server}/computeMetadata/v1/{key}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=self._every_s) as answer:
                return answer.read().decode().strip().upper()
        except (OSError, ValueError):
            return None


def _on_google() -> bool:
    try:
        return "Google" in Path("/sys/class/dmi/id/product_name").read_text()
    except OSError:
        return False
