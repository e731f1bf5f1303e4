"""What a model is, before any array exists: its shape, its size and its cost. Pure Python, so that plans and sweeps
can ask for parameters and FLOPs without starting JAX.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cpt.errors import ConfigError, nearest

GELUS = ("tanh", "exact")
INITS = ("neox",)
COMPUTE_DTYPES = ("float32", "bfloat16")
REMATS = ("none", "full")
ATTENTION_COUNTS = ("causal", "palm")


@dataclass(frozen=True)
class ModelSpec:
    """Hyper-parameters of a decoder; the defaults are those of Pythia (Biderman et al. 2023, arXiv 2304.01373).

    Attributes:
      family: file of `cpt/models` that defines the architecture, or `package.module:name`.
      layers, width, heads: transformer blocks, model dimension d, attention heads (head dimension is width / heads).
      ff: inner dimension of the MLP; None is 4 * width.
      vocab_size: rows of the embedding and of the output head, padding included.
      context: longest row in tokens that the model accepts.
      rotary_fraction: share of each head's channels that are rotated (RoPE, arXiv 2104.09864); 0 is no positions.
      rotary_base: base of the rotary frequencies.
      norm_eps: epsilon of the layer norms.
      parallel_residual: `x + attention(norm(x)) + mlp(norm'(x))`, or one after the other.
      gelu: "tanh" is what Pythia was trained with; "exact" (erf) is what its Hugging Face config says.
      init: "neox" draws in-projections, embedding and head with small-init, std sqrt(2 / (5 d)) (Nguyen and Salazar
        2019, arXiv 1910.05895), and both output projections of a block with Wang's std 2 / (layers sqrt(d)).
      init_std: one standard deviation for every matrix in place of `init`'s two.
      compute_dtype: dtype of weights and activations in the forward pass; parameters are always float32.
      remat: "full" keeps only each block's input and recomputes the rest in the backward pass.
    """

    layers: int
    width: int
    heads: int
    vocab_size: int
    context: int
    family: str = "gpt_neox"
    ff: int | None = None
    rotary_fraction: float = 0.25
    rotary_base: float = 10000.0
    norm_eps: float = 1e-5
    parallel_residual: bool = True
    gelu: str = "tanh"
    init: str = "neox"
    init_std: float | None = None
    compute_dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        """Raises ConfigError for the first field that is out of range or contradicts another."""
        for field in ("layers", "width", "heads", "vocab_size", "context", "ff"):
            self._check_count(field)
        for field, allowed in _NAMES.items():
            _check_name(f"model.{field}", getattr(self, field), allowed)
        if self.width % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide model.width = {self.width}")
        for field in ("rotary_base", "norm_eps", "init_std"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ConfigError(f"model.{field}: {value} must be positive")
        if not 0 <= self.rotary_fraction <= 1:
            raise ConfigError(f"model.rotary_fraction: {self.rotary_fraction} must be between 0 and 1")
        if self.rotary_dim % 2:
            raise ConfigError(
                f"model.rotary_fraction: {self.rotary_fraction} of {self.head_dim} channels per head rotates "
                f"{self.rotary_dim}, and channels rotate in pairs; choose a fraction that gives an even number"
            )
        if not isinstance(self.parallel_residual, bool):
            raise ConfigError(f"model.parallel_residual: {self.parallel_residual!r} must be True or False")

    def _check_count(self, field: str) -> None:
        value = getattr(self, field)
        if field == "ff" and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"model.{field}: {value!r} must be a whole number of at least 1")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        """Rotated channels of one head; truncated as in GPT-NeoX, so that its checkpoints mean the same here."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def ff_dim(self) -> int:
        """Inner dimension of the MLP."""
        return 4 * self.width if self.ff is None else self.ff


_NAMES = {
    "gelu": GELUS,
    "init": INITS,
    "compute_dtype": COMPUTE_DTYPES,
    "remat": REMATS,
}


def _check_name(where: str, value: Any, allowed: Iterable[str]) -> None:
    if value not in tuple(allowed):
        raise ConfigError(f"{where}: no '{value}'{nearest(str(value), allowed)}  (there are: {', '.join(allowed)})")


def parameter_count(spec: ModelSpec, embedding: bool = True) -> int:
    """Parameters of the model; for ff = 4d it is 2Vd + L(12 d^2 + 13 d) + 2d.

    Args:
      spec: the model.
      embedding: count the embedding and the untied output head too; without them it is the N of scaling laws.
    """
    d, ff = spec.width, spec.ff_dim
    attention = 4 * d * d + 4 * d
    mlp = 2 * d * ff + ff + d
    norms = 4 * d
    body = spec.layers * (attention + mlp + norms) + 2 * d
    return body + (2 * spec.vocab_size * d if embedding else 0)


def flops_per_token(spec: ModelSpec, length: int, attention: str = "causal") -> float:
    """Floating-point operations to train on one token: forward plus backward (twice the forward), matmuls only.

    `6 L (4 d^2 + 2 d d_ff) + 6 d V + A`: a multiply-add is 2 operations; look-ups, norms, softmax and the optimizer
    count as 0. Recomputation (`remat`) is not counted: this is model FLOPs, the numerator of MFU.

    Args:
      spec: the model.
      length: tokens of a row; for packed documents their mean visible context, sum(n^2) / sum(n).
      attention: "causal" counts the visible half, A = 6 L d (T + 1); "palm" the whole square, A = 12 L d T (PaLM,
        arXiv 2204.02311, appendix B), which most published MFUs use.

    Raises:
      ConfigError: an unknown `attention`.
    """
    _check_name("attention", attention, ATTENTION_COUNTS)
    d = spec.width
    dense = 6 * spec.layers * (4 * d * d + 2 * d * spec.ff_dim)
    logits = 6 * d * spec.vocab_size
    square = 6 * spec.layers * d * (length + 1) if attention == "causal" else 12 * spec.layers * d * length
    return float(dense + logits + square)
