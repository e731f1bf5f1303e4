"""What a model is, before any array exists: its shape, its size and its cost. Pure Python, so that plans and sweeps
can ask for parameters and FLOPs without starting JAX.
"""

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
    check_name,
    check_names,
    check_positive,
)
from cpt.models.llama_spec import LlamaSpec
from cpt.models.rope import PLAIN, RopeSpec

GELUS = ("tanh", "exact")
ATTENTION_COUNTS = ("causal", "palm")
MAY_DIFFER = frozenset({"attention", "compute_dtype", "context", "remat", "scan_layers", "init", "init_std"})
"""Fields that say how a model computes or started, not what its parameters are."""
BY_HAND_FROM = 256
"""Tokens of a row from which on attention keeps no weights [L, L] for the backward pass, but computes them again; below
it they are few, and reading them is not slower (`cpt/models/attention/blocked.py`)."""


@dataclass(frozen=True)
class ModelSpec(DecoderSpec):
    """Hyper-parameters of GPT-NeoX; the defaults are those of Pythia (Biderman et al. 2023, arXiv 2304.01373).

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
      remat: what is computed again in the backward pass to keep less: "none", "names" (norms and activations), "dots"
        (all but products by a weight), "full" (all but each block's input), "offload" (which lies on the host).
      scan_layers: one block in a loop, which compiles faster, instead of all of them in a row, which runs faster; None
        is the loop beyond 32 layers. The parameters are the same.
      attention: backend that computes attention (`cpt/models/attention`); "auto" takes the fastest that can, and the
        launch says which and why.
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
    scan_layers: bool | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        """Raises ConfigError for the first field that is out of range or contradicts another."""
        check_counts(
            self, "layers", "width", "heads", "vocab_size", "context", *(["ff"] if self.ff is not None else [])
        )
        check_names(self, {"gelu": GELUS, "init": INITS, "compute_dtype": COMPUTE_DTYPES, "remat": REMATS})
        check_attention(self)
        if self.width % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide model.width = {self.width}")
        check_positive(self, "rotary_base", "norm_eps", "init_std")
        if not 0 <= self.rotary_fraction <= 1:
            raise ConfigError(f"model.rotary_fraction: {self.rotary_fraction} must be between 0 and 1")
        if self.rotary_dim % 2:
            raise ConfigError(
                f"model.rotary_fraction: {self.rotary_fraction} of {self.head_dim} channels per head rotates "
                f"{self.rotary_dim}, and channels rotate in pairs; choose a fraction that gives an even number"
            )
        check_flags(self, "parallel_residual", *(["scan_layers"] if self.scan_layers is not None else []))

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        """Rotated channels of one head; truncated as in GPT-NeoX, so that its checkpoints mean the same here."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def rope(self) -> RopeSpec:
        """Rotary frequencies are never scaled."""
        return PLAIN

    @property
    def ff_dim(self) -> int:
        """Inner dimension of the MLP."""
        return 4 * self.width if self.ff is None else self.ff

    @property
    def kv_heads(self) -> int:
        """Every head has keys and values of its own."""
        return self.heads

    @property
    def tied(self) -> bool:
        """The output head is a matrix of its own."""
        return False

    @property
    def block_matrices(self) -> int:
        """4 d^2 of attention and 2 d d_ff of the MLP."""
        return 4 * self.width**2 + 2 * self.width * self.ff_dim

    @property
    def block_vectors(self) -> int:
        """Biases of the four linear maps, scale and bias of two norms."""
        return 4 * self.width + self.ff_dim + self.width + 4 * self.width

    @property
    def final_vectors(self) -> int:
        """Scale and bias."""
        return 2 * self.width


SPECS: dict[str, type[DecoderSpec]] = {"gpt_neox": ModelSpec, "llama": LlamaSpec}
"""The spec of each family."""


def parameter_count(spec: DecoderSpec, embedding: bool = True) -> int:
    """Parameters of the model; for GPT-NeoX with ff = 4d it is 2Vd + L(12 d^2 + 13 d) + 2d.

    Args:
      spec: the model.
      embedding: count the embedding and an untied output head too; without them it is the N of scaling laws.
    """
    body = spec.layers * (spec.block_matrices + spec.block_vectors) + spec.final_vectors
    return body + ((1 if spec.tied else 2) * spec.vocab_size * spec.width if embedding else 0)


def flops_per_token(spec: DecoderSpec, length: int, attention: str = "causal") -> float:
    """Floating-point operations to train on one token: forward plus backward (twice the forward), matmuls only.

    `6 L M + 6 d V + A` with M the numbers in the matrices of a block (`4 d^2 + 2 d d_ff` for GPT-NeoX): a multiply-add
    is 2 operations; look-ups, norms, softmax and the optimizer count as 0. Recomputation (`remat`) is not counted: this
    is model FLOPs, the numerator of MFU. Sharing keys and values among heads makes M smaller, not A.

    Args:
      spec: the model.
      length: tokens of a row; for packed documents their mean visible context, sum(n^2) / sum(n).
      attention: "causal" counts the visible half, A = 6 L h (T + 1) with h = heads * head_dim; "palm" the whole square,
        A = 12 L h T (PaLM, arXiv 2204.02311, appendix B), which most published MFUs use.

    Raises:
      ConfigError: an unknown `attention`.
    """
    check_name("attention", attention, ATTENTION_COUNTS)
    channels = spec.heads * spec.head_dim
    dense = 6 * spec.layers * spec.block_matrices
    logits = 6 * spec.width * spec.vocab_size
    square = (
        6 * spec.layers * channels * (length + 1) if attention == "causal" else 12 * spec.layers * channels * length
    )
    return float(dense + logits + square)
