"""Short names for configs that say what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpt.evaluators.formatting import DASH

LONGEST = 60  # characters


def distinguishing_names(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """A name per config, such as `replay.share=0.25`: the fields that differ, by the ends of their paths.

    Of many fields only as many as it takes to tell the configs apart, and numbered where even that is too long. `all`
    where nothing differs.

    Args:
      configs: dotted path -> text, as `flatten` gives; a field may be missing in some.
    """
    fields = {k: [g.get(k, DASH) for g in configs] for k in dict.fromkeys(k for g in configs for k in g)}
    fields = {k: v for k, v in fields.items() if len(set(v)) > 1}
    if not fields:
        return ["all"] * len(configs)
    names = _written(fields, list(fields))
    if max(map(len, names)) > LONGEST:
        names = _written(fields, _telling(fields))
    return [n if len(n) <= LONGEST else f"{n[: LONGEST - 5].rstrip()}… #{i}" for i, n in enumerate(names, 1)]


def _telling(fields: dict[str, list[str]]) -> list[str]:
    """Few fields that together tell apart whatever all of them tell apart, in the order of the config."""
    chosen: list[str] = []

    def apart(keys: list[str]) -> int:
        return len(set(zip(*(fields[k] for k in keys), strict=True)))

    while not chosen or apart(chosen) < apart(list(fields)):
        # A field that some configs do not have is the consequence of one that all have; a short path is a main switch.
        chosen.append(max(fields, key=lambda k: (apart([*chosen, k]), -fields[k].count(DASH), -k.count("."))))
    return [k for k in fields if k in chosen]


def _written(fields: dict[str, list[str]], keys: list[str]) -> list[str]:
    short = {k: _suffix(k, keys) for k in keys}
    return [", ".join(f"{short[k]}={v}" for k, v in zip(keys, row, strict=True))
            for row in zip(*(fields[k] for k in keys), strict=True)]  # fmt: skip


def _suffix(key: str, keys: list[str]) -> str:
    """The end of a dotted path, of two parts or as many as tell it from the others."""
    parts = key.split(".")
    for n in range(2, len(parts)):
        end = ".".join(parts[-n:])
        if sum(k == end or k.endswith(f".{end}") for k in keys) == 1:
            return end
    return key


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested data as dotted path -> text; an empty section keeps its line."""
    if isinstance(value, Mapping) and value:
        return {p: t for k, v in value.items() for p, t in flatten(v, f"{prefix}.{k}" if prefix else str(k)).items()}
    return {prefix: str(value)}
