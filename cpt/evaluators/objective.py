"""One number of a run by its path in `summary.json`: what a table is sorted by and a sweep searches for."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from cpt.errors import ConfigError, nearest


def objective(summary: Mapping[str, Any], path: str) -> float:
    """The number of a summary at a dotted path; `*` is the mean over everything there, a number is a list's index.

    `sets.pile.forgetting`, `bwt`, `sets.*.final`, `sets.pile.forgetting_ci95.1`. NaN where it is undefined; a mean is
    undefined where one of its values is, for a mean over fewer sets would be another quantity.

    Raises:
      ConfigError: there is no such path, or no number at its end; the line lists what there is.
    """
    return _number(summary, path.split("."), path, [])


def _number(value: Any, parts: list[str], path: str, done: list[str]) -> float:
    if value is None:
        return np.nan
    if isinstance(value, list | tuple):
        value = {str(i): v for i, v in enumerate(value)}
    if not parts and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, Mapping) or not parts:
        what = f"has the fields {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"is {value!r}"
        raise ConfigError(f"objective '{path}': '{'.'.join(done) or path}' is no number, it {what}")
    if parts[0] == "*" and value:
        return float(np.mean([_number(v, parts[1:], path, [*done, str(k)]) for k, v in value.items()]))
    # The name of a set may have dots in it.
    for n in range(len(parts), 0, -1):
        if (key := ".".join(parts[:n])) in value:
            return _number(value[key], parts[n:], path, [*done, key])
    raise ConfigError(
        f"objective '{path}': no '{parts[0]}' in {'.'.join(done) or 'the summary'}{nearest(parts[0], value)}  "
        f"(there are: {', '.join(map(str, value)) or 'none'}; * is the mean over all)"
    )
