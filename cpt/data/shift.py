"""How far apart the tokens of two stores are: a number for "weak" or "strong" shift of distribution."""

from __future__ import annotations

import numpy as np

from cpt.data.store import TokenStore

SAMPLE = 1 << 20  # tokens of each store
BLOCKS = 64


def divergence(one: TokenStore, other: TokenStore, sample: int = SAMPLE) -> float:
    """Jensen-Shannon divergence of the unigram frequencies of two stores, in bits: 0 the same, 1 no token in common.

    With m the mean of the frequencies p and q: `(KL(p | m) + KL(q | m)) / 2` (Lin 1991).

    Args:
      sample: tokens that are read of each store, in blocks spread over it; of two samples of one distribution, n tokens
        of V ids each, the divergence is about V / (4 n ln 2) and not 0.
    """
    counts = [np.bincount(_sample(store, sample)) for store in (one, other)]
    size = max(map(len, counts))
    p_V, q_V = (np.pad(n, (0, size - len(n))) / n.sum() for n in counts)
    m_V = (p_V + q_V) / 2
    return 0.5 * sum(float((x_V[x_V > 0] * np.log2(x_V[x_V > 0] / m_V[x_V > 0])).sum()) for x_V in (p_V, q_V))


def _sample(store: TokenStore, sample: int) -> np.ndarray:
    if store.n_tokens <= sample:
        return store.read(0, store.n_tokens)
    block = sample // BLOCKS
    starts = np.linspace(0, store.n_tokens - block, BLOCKS).astype(np.int64)
    return np.concatenate([store.read(int(start), block) for start in starts])
