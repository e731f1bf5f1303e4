"""The plan of measurements for one GPU: parts in processes of their own, within a budget of time.

A part that fails or takes too long costs nothing but itself; what it had measured by then is kept, and the results are
written after each part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt.errors import RunError
from cpt.evaluators.rows import write_atomic

PARTS = {  # seconds that each may take at most
    "ceilings": 60,
    "attention": 60,
    "head": 75,
    "step": 240,
    "evaluation": 60,
    "snapshot": 40,
    "checkpoint": 60,
    "peers": 150,
}
ORDER = tuple(PARTS)
LEAST_S = 15.0  # a part is not begun with less left


def bench_gpu(
    small: bool, minutes: float, python: str | None, out: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Ceilings, attention, head, step, evaluation, snapshot, checkpoint and peers, in this order.

    Args:
      small: the same plan at toy sizes, on whatever device there is.
      minutes: for all of it.
      python: of the peer on PyTorch; without one it is ours (on a GPU machine torch is often there) or left out.
      out: folder for `gpu.json`, written after each part.

    Raises:
      RunError: there is no GPU.
    """
    if not small and (backend := backend_here()) != "gpu":
        raise RunError(f"--suite=gpu: no GPU here (the backend is {backend}); --small runs the plan without one")
    end = time.monotonic() + 60 * minutes
    result: dict[str, Any] = {"small": small, "minutes": minutes, "parts": {}}
    for name in ORDER:
        left = end - time.monotonic()
        if left < LEAST_S:
            result["parts"][name] = {"failed": f"not begun: the {minutes:g} minutes are over"}
        else:
            say(f"{name} ({left:.0f} s left)")
            result["parts"][name] = run_part(name, small, python, min(PARTS[name], left))
        for line in lines(name, result["parts"][name]):
            say(line)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / "gpu.json", json.dumps(result, indent=1))
    result["took_s"] = 60 * minutes - (end - time.monotonic())
    return result


def backend_here() -> str:
    """JAX's default backend, asked in another process: here it would take the memory that the parts need."""
    code = "import jax; print(jax.default_backend())"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "one that does not answer"
    return (done.stdout.strip().splitlines() or ["none"])[-1]


def run_part(name: str, small: bool, python: str | None, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own; what it measured, and `failed` where it did not come to its end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        command = [sys.executable, "-m", "cpt.bench.gpu_parts", name, str(file), "small" if small else "full"]
        env = dict(os.environ) | ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if name == "peers" else {})
        failed, begun = None, time.monotonic()
        with (Path(folder) / "said").open("w+") as said:
            process = subprocess.Popen([*command, python or ""], stdout=said, stderr=said, env=env)
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.terminate()  # peers end with the pipe that they listen to
                process.wait()
                failed = f"stopped after {seconds:.0f} s"
            else:
                said.seek(0)
                told = [line.strip() for line in said.read().splitlines() if line.strip()]
                failed = f"{told[-1] if told else 'no reason given'} (exit code {code})" if code else None
        found = json.loads(file.read_text()) if file.exists() else {}
    return found | ({"failed": failed} if failed else {}) | {"took_s": round(time.monotonic() - begun, 1)}


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """A line per measurement."""
    out = []
    for item, said in found.items():
        if item == "took_s":
            continue
        if isinstance(said, dict):
            said = ", ".join(f"{k} {_short(v)}" for k, v in _flat(said) if isinstance(v, str | int | float))
        out.append(f"  {name} · {item}: {said}")
    return out


def _flat(said: dict[str, Any]) -> list[tuple[str, Any]]:
    """Its numbers, and of what peers said the ratios."""
    ratios = said.get("ratio", {})
    return [*said.items(), *((f"{peer}/ours {what}", r) for what, of in ratios.items() for peer, r in of.items())]


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
