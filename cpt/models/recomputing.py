"""What a block keeps for its backward pass, and what is computed again: `model.remat`.

    none      everything that the backward pass reads
    names     what products gave: queries, keys and values, the mix of attention, the inner layer of the MLP
    dots      what products by a weight gave; attention is computed again
    full      the block's input
    offload   the block's input, in the memory of the host

In bfloat16 a block of GPT-NeoX keeps 30, 18, 20, 2 and 0 bytes per token and channel on the device, in this order, and
what its attention keeps. With `names` no product by a weight is computed twice, with `full` all of the forward pass is,
a third more in all. XLA on CPU may undo it where layers are unrolled: it finds what is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import checkpoint_policies as policies

KEPT = ("qkv", "mixed", "attention_sums", "inner")
"""Names of arrays (`jax.ad_checkpoint.checkpoint_name`) that `names` keeps; blocks give them."""


def recomputing(remat: str, run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`run(graph, state, x_NxD)`, of which the backward pass keeps what `remat` says."""
    policy: dict[str, Any] = {
        "names": policies.save_only_these_names(*KEPT),
        "dots": policies.dots_with_no_batch_dims_saveable,
        "full": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["block_input"],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    return run if remat == "none" else partial(jax.checkpoint, static_argnums=0, policy=policy[remat])(run)
