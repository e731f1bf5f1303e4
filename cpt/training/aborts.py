"""What process 0 takes along when it is killed: JAX's coordinator, without which JAX aborts every other process.

It does so in C++, within a moment and before a thread of ours could hear of it: exit code 134, which a launcher takes
for a mistake in the run. A handler of that signal looks whether the coordinator is still there. If not, the process
leaves with the reason and the code that says "start me again"; any other abort goes its way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time

from cpt.training.signals import STOPPED_BY_SIGNAL

SETTLE_S = 0.5  # what a killed process held open is closed one after another
ANSWER_S = 5.0

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_installed: list[object] = []  # C knows only their addresses


def explain_aborts(coordinator: str) -> None:
    """From now on this process ends with code 75 and a line where it is aborted and the coordinator is gone.

    Not through `signal.signal`: what it installs runs in the main thread, after `abort` has ended the process.

    Args:
      coordinator: its address, HOST:PORT.
    """

    def aborted(number: int) -> None:
        time.sleep(SETTLE_S)
        if not answers(coordinator):
            line = f"run error: process 0 at {coordinator} is gone; start the same command again on all of them\n"
            os.write(2, line.encode())
            os._exit(STOPPED_BY_SIGNAL)

    handler = _Handler(aborted)
    _installed.append(handler)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = (ctypes.c_int, _Handler), ctypes.c_void_p
    install(signal.SIGABRT, handler)


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True
