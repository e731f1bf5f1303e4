"""What the specs of all model families have in common: what the framework asks of them, and how they check fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cpt import registry
from cpt.errors import ConfigError, nearest

INITS = ("neox",)
COMPUTE_DTYPES = ("float32", "bfloat16")
REMATS = ("none", "names", "dots", "full", "offload")
UNROLLED_UP_TO = 32  # layers; a program of more compiles for minutes
ATTENTIONS = ("auto", "reference", "blocked", "cudnn", "splash")


@dataclass(frozen=True)
class DecoderSpec:
    """Hyper-parameters of a decoder of any family: what plans, sharding, conversion and evaluators may rely on.

    Attributes:
      family, layers, width, heads, vocab_size, context, init, init_std, compute_dtype, remat, scan_layers: as in
        `ModelSpec`.
      head_dim: channels of one attention head.
      rotary_dim, rotary_base, rope: rotated channels of a head, and the frequencies they turn with.
      kv_heads: heads of keys and values, each shared by `heads / kv_heads` query heads.
      ff_dim: inner dimension of the MLP.
      tied: whether the embedding is the output head too.
      block_matrices, block_vectors: numbers of one block in matrices, each multiplied once per token, and in vectors.
      final_vectors: numbers of the norm before the output head.
    """

    @classmethod
    def variant(cls, raw: Mapping[str, Any], where: str) -> type:
        """The class of the family that a config section names; a family of one's own has the fields of `ModelSpec`.

        Raises:
          ConfigError: there is no such family.
        """
        from cpt.models.spec import SPECS, ModelSpec

        if cls is not DecoderSpec:
            return cls
        family = raw.get("family") or "gpt_neox"
        registry.check("cpt.models", str(family), f"{where}.family" if where else "family")
        return SPECS.get(family, ModelSpec)


def is_scanned(spec: DecoderSpec) -> bool:
    """Whether the layers are one block in a loop rather than one after the other in the program."""
    return spec.layers > UNROLLED_UP_TO if spec.scan_layers is None else spec.scan_layers


def check_counts(spec: Any, *fields: str) -> None:
    """Raises ConfigError for the first of `fields` that is no whole number of at least 1."""
    for field in fields:
        value = getattr(spec, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"model.{field}: {value!r} must be a whole number of at least 1")


def check_positive(spec: Any, *fields: str, where: str = "model") -> None:
    """Raises ConfigError for the first of `fields` that is given and not above 0."""
    for field in fields:
        value = getattr(spec, field)
        if value is not None and not value > 0:
            raise ConfigError(f"{where}.{field}: {value} must be positive")


def check_names(spec: Any, allowed: Mapping[str, Iterable[str]], where: str = "model") -> None:
    """Raises ConfigError for the first field whose value is none of those `allowed`."""
    for field, names in allowed.items():
        check_name(f"{where}.{field}", getattr(spec, field), names)


def check_name(where: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ConfigError, with the nearest name, where `value` is none of those `allowed`."""
    if value not in tuple(allowed):
        raise ConfigError(f"{where}: no '{value}'{nearest(str(value), allowed)}  (there are: {', '.join(allowed)})")


def check_attention(spec: Any) -> None:
    """Raises ConfigError where `spec.attention` is no backend, nor one's own that can be found."""
    if ":" in str(spec.attention):
        registry.check("cpt.models.attention", spec.attention, "model.attention")
    else:
        check_names(spec, {"attention": ATTENTIONS})


def check_flags(spec: Any, *fields: str, where: str = "model") -> None:
    """Raises ConfigError for the first of `fields` that is neither True nor False."""
    for field in fields:
        if not isinstance(value := getattr(spec, field), bool):
            raise ConfigError(f"{where}.{field}: {value!r} must be True or False")
