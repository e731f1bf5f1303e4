"""What runs in a peer's process, under whatever Python has its packages: nothing but the standard library here.

    python serving.py PEER.py SETTING.json

`PEER.py` has a function `make(setting)` that gives an object with `facts`, a dict, and three methods: `step(n)` does n
updates, waits for the last and returns the loss before it; `evaluate(n)` scores the evaluation rows n times, likewise;
`memory()` is the most that it held, in bytes.
Lines come in (`step 1`, `evaluate 1`), and one line of JSON goes out for each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    # What this folder holds must not be found instead of what a library of the same name asks for.
    sys.path[:] = [p for p in sys.path if os.path.realpath(p or ".") != os.path.dirname(os.path.realpath(__file__))]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, too

    def answer(content: dict) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    with open(sys.argv[2]) as file:
        peer = loaded(sys.argv[1]).make(json.load(file))
    answer({"facts": peer.facts})
    for line in sys.stdin:
        what, times = line.split()
        begin, worked = time.monotonic(), time.process_time()
        loss = {"step": peer.step, "evaluate": peer.evaluate}[what](int(times))
        end, worked = time.monotonic(), time.process_time() - worked
        answer({"begin": begin, "end": end, "cpu_s": worked, "loss": float(loss), "memory": peer.memory()})


def loaded(path: str) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("peer", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module  # dataclasses look up the module of a class
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
