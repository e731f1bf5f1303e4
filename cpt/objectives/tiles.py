"""How many tokens have their logits at once. Pure Python, for what estimates memory too."""

from __future__ import annotations

LOGITS_AT_ONCE = 2**26
"""Elements: 256 MB of float32; below it tiles only cost time."""

HALF_LOGITS_AT_ONCE = 2**28
"""The same for products in 16 bits. Those are so fast that small tiles would mostly wait for the gradient of the head,
which each of them reads and writes.
"""


def rows_per_tile(tokens: int, vocab_size: int, half: bool) -> int:
    """Tokens per tile that keep the logits of one device under the limit; all `tokens` where they fit.

    A number that divides `tokens` is preferred, as padding them is a copy.

    Args:
      tokens, vocab_size: of one device.
      half: whether the products read 16 bits.
    """
    most = min(tokens, max(1, (HALF_LOGITS_AT_ONCE if half else LOGITS_AT_ONCE) // vocab_size))
    return next((rows for rows in range(most, most // 2, -1) if tokens % rows == 0), most)
