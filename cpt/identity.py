"""Which fields of a run say what it computes: two runs that agree in them are the same run."""

from __future__ import annotations

from typing import Any

from cpt.config import RunSpec
from cpt.sections import to_dict

# How a run is carried out, not what it computes (up to the order of sums): no part of its identity.
EXECUTION_FIELDS = (
    "mesh",
    "stores",
    "notice",
    "loggers",
    "batch.accumulate",
    "model.remat",
    "model.scan_layers",
    "guard.stall_s",
    "checkpoints.rolling_minutes",
    "checkpoints.concurrent_gb",
)


def identity(spec: RunSpec, defaults: bool = True) -> dict[str, Any]:
    """The fields of a run, as JSON data, without the `EXECUTION_FIELDS`.

    Args:
      defaults: also those that have their default value; without them a field that is added to `cpt` later changes
        nothing for the runs that do not use it.
    """
    out = to_dict(spec, defaults)
    for path in EXECUTION_FIELDS:
        *parents, name = path.split(".")
        node = out
        for parent in parents:
            node = node.get(parent, {})
        node.pop(name, None)
    out["model"]["family"] = spec.model.family  # each family has defaults of its own
    if ":" not in getattr(spec.model, "attention", ":"):  # backends compute the same; a function of one's own may not
        out["model"].pop("attention", None)
    return out
