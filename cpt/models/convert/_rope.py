"""Scaled rotary positions in a `config.json`, as transformers 4 and 5 write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cpt.models.convert._settings import Settings
from cpt.models.rope import KINDS, RopeSpec

# Fields of `RopeSpec` by their names in a config.
NAMES = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
}
REQUIRED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ()}


def read_rope(settings: Settings, config: Mapping[str, Any], context: int) -> tuple[float, RopeSpec]:
    """Base and scaling of the rotary frequencies.

    Raises:
      ConfigError: a kind that changes with the length of a row or is not known, a number that is missing, two bases.
    """
    said = settings.section("rope_parameters") | settings.section("rope_scaling")
    for name, value in said.items():
        if isinstance(value, Mapping):
            settings.unsupported("rope_parameters", name, "rotary positions of its own for a kind of layer")
    settings.refuse(said.get("partial_rotary_factor", 1), "rope_parameters.partial_rotary_factor", (1, None))
    kind = rope_kind(settings, tuple(KINDS))
    bases = {"rope_parameters.rope_theta": said.get("rope_theta"), "rope_theta": config.get("rope_theta")}
    base = settings.agreed(10000.0, bases)
    said = {name: value for name, value in said.items() if value is not None}
    if "original_max_position_embeddings" in config:  # transformers gives this place precedence
        said["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    for name in REQUIRED.get(kind, ()):
        settings.refuse(name in said, f"rope_scaling has {name}", (True,))
    fields = {ours: said[name] for name, ours in NAMES.items() if name in said and ours in KINDS[kind]}
    if "original_context" in KINDS[kind]:
        fields.setdefault("original_context", context)
    if kind == "yarn":
        fields.setdefault("factor", context / fields["original_context"])
        if "attention_factor" not in fields and (scale := _mscale(said, fields["factor"])):
            fields["attention_factor"] = scale
    return base, settings.spec(RopeSpec, kind=kind, **_numbers(settings, fields))


def rope_kind(settings: Settings, allowed: tuple[str, ...]) -> str:
    """The kind of rotary scaling that a config asks for, by its new name or its old one.

    Raises:
      ConfigError: one that is not `allowed`; two.
    """
    sections = [s for s in (settings.section("rope_parameters"), settings.section("rope_scaling")) if s]
    kinds = [s.get("rope_type") or s.get("type") or "default" for s in sections] or ["default"]
    for kind in kinds:
        settings.refuse(kind, "rope_type", allowed)
    if len(set(kinds)) > 1:
        settings.contradiction(f"rope_parameters of type {kinds[0]} and rope_scaling of type {kinds[1]}")
    return kinds[0]


def _numbers(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    whole = ("original_context", "truncate")
    numbers = {k: v if k in whole else settings.agreed(0.0, {f"rope_scaling.{k}": v}) for k, v in fields.items()}
    if "original_context" in fields:
        settings.agreed(0.0, {"rope_scaling.original_max_position_embeddings": fields["original_context"]})
    return numbers


def _mscale(said: Mapping[str, Any], factor: float) -> float | None:
    """The attention factor of DeepSeek's two settings; None without them."""
    one, other = said.get("mscale"), said.get("mscale_all_dim")
    if not one or not other:
        return None
    return (0.1 * one * math.log(factor) + 1) / (0.1 * other * math.log(factor) + 1)


def write_rope(rope: RopeSpec, base: float) -> dict[str, Any]:
    """The fields of `config.json`, in both spellings."""
    said = {name: getattr(rope, ours) for name, ours in NAMES.items() if ours in KINDS[rope.kind]}
    if said.pop("truncate", True) is False:  # readers that do not know it round, and warn of it
        said["truncate"] = False
    if said.get("attention_factor", 0) is None:
        del said["attention_factor"]
    scaling = None if rope.kind == "default" else {"rope_type": rope.kind, "type": rope.kind, **said}
    return {
        "rope_theta": base,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": rope.kind, "rope_theta": base, **said},
    }
