"""The shape, size and cost of a Llama: the family of Llama 1 to 3, Mistral, Qwen 2 to 3, SmolLM and OLMo 2."""

from __future__ import annotations

from dataclasses import dataclass

from cpt.errors import ConfigError
from cpt.models._spec import (
    COMPUTE_DTYPES,
    INITS,
    REMATS,
    DecoderSpec,
    check_attention,
    check_counts,
    check_flags,
    check_names,
    check_positive,
)
from cpt.models.rope import RopeSpec

BIASES = ("none", "qkv", "attention")
QK_NORMS = ("none", "head", "width")
NORM_PLACEMENTS = ("before", "after")


@dataclass(frozen=True)
class LlamaSpec(DecoderSpec):
    """Hyper-parameters of a Llama (Touvron et al. 2023, arXiv 2302.13971) and of what descends from it.

    `kv_heads`, `head_dim` and `ff` are whole numbers once the spec is made, also where None was given.

    Attributes:
      family: "llama".
      layers, width, heads: transformer blocks, model dimension d, query heads.
      kv_heads: heads of keys and values, each shared by `heads / kv_heads` query heads (Ainslie et al. 2023, arXiv
        2305.13245); None is `heads`.
      head_dim: channels of one head; None is width / heads.
      ff: inner dimension of the SwiGLU MLP; None is 8/3 width, rounded up to a multiple of 256.
      vocab_size: rows of the embedding and of the output head, padding included.
      context: longest row in tokens that the model accepts.
      rotary_base: base of the rotary frequencies; all channels of a head are rotated.
      rope: how the frequencies are scaled for a longer context.
      norm_eps: epsilon of the RMS norms.
      norm_placement: "before" attention and MLP, or "after" them, before their sum with the residual stream (OLMo 2,
        arXiv 2501.00656).
      qk_norm: RMS norm of queries and keys before they are rotated: "none"; of each "head" by itself (Qwen3); over the
        whole "width" of all heads (OLMo 2).
      bias: "none"; "qkv" for queries, keys and values (Qwen2); "attention" for the output projection too.
      tied: the embedding is the output head too.
      init, init_std, compute_dtype, remat, scan_layers, attention: as in `ModelSpec`.
    """

    layers: int
    width: int
    heads: int
    vocab_size: int
    context: int
    family: str = "llama"
    kv_heads: int | None = None
    head_dim: int | None = None
    ff: int | None = None
    rotary_base: float = 10000.0
    rope: RopeSpec = RopeSpec()
    norm_eps: float = 1e-5
    norm_placement: str = "before"
    qk_norm: str = "none"
    bias: str = "none"
    tied: bool = False
    init: str = "neox"
    init_std: float | None = None
    compute_dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        """Raises ConfigError for the first field that is out of range or contradicts another."""
        check_counts(self, "layers", "width", "heads", "vocab_size", "context")
        if self.head_dim is None and self.width % self.heads:
            raise ConfigError(
                f"model.heads: {self.heads} does not divide model.width = {self.width}; or give model.head_dim"
            )
        implied = {"kv_heads": self.heads, "head_dim": self.width // self.heads, "ff": -(-self.width * 8 // 768) * 256}
        for field, value in implied.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        check_counts(self, *implied)
        if self.heads % self.kv_heads:
            raise ConfigError(f"model.kv_heads: {self.kv_heads} does not divide model.heads = {self.heads}")
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim: {self.head_dim} is odd, and channels rotate in pairs")
        check_positive(self, "rotary_base", "norm_eps", "init_std")
        check_names(self, {"norm_placement": NORM_PLACEMENTS, "qk_norm": QK_NORMS, "bias": BIASES})
        check_names(self, {"init": INITS, "compute_dtype": COMPUTE_DTYPES, "remat": REMATS})
        check_attention(self)
        check_flags(self, "tied", *(["scan_layers"] if self.scan_layers is not None else []))

    @property
    def rotary_dim(self) -> int:
        """All channels of a head are rotated."""
        return self.head_dim

    @property
    def ff_dim(self) -> int:
        """Inner dimension of the MLP."""
        return self.ff

    @property
    def block_matrices(self) -> int:
        """Queries, keys, values and output of attention; gate, up and down of the MLP."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_dim
        return attention + 3 * self.width * self.ff

    @property
    def block_vectors(self) -> int:
        """Scales of the norms and biases of attention."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        of_qk = {"none": 0, "head": 2 * self.head_dim, "width": queries + keys}[self.qk_norm]
        biases = {"none": 0, "qkv": queries + 2 * keys, "attention": queries + 2 * keys + self.width}[self.bias]
        return 2 * self.width + of_qk + biases

    @property
    def final_vectors(self) -> int:
        """The scale of the norm before the head."""
        return self.width
