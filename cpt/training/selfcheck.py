"""Refuse to train on a backend that adds wrongly.

jaxlib 0.10.2 returns a number some 0.2 to 0.8 % below the right 1073741824 for the last row below on CPU (jax issue
39103: a rewrite of sum-of-products into a fused dot). Sums of squares are everywhere here (norms, per-row losses), and
the result looks plausible.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cpt.errors import RunError


def summed_squares(n: int = 32769) -> float:
    """The reproducer: per-row sums of squares through `vmap` and `jit`; the last row is (n - 1, 0, 0)."""
    rows_Nx3 = np.zeros((n, 3), np.float32)
    rows_Nx3[:, 0] = np.arange(n)
    matrix = jnp.eye(3, dtype=jnp.float32)
    squares_N = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(jnp.asarray(rows_Nx3))
    return float(jax.device_get(squares_N)[-1])


def selfcheck() -> None:
    """Raises RunError if this machine's JAX gives a wrong sum."""
    got, want = summed_squares(), 32768.0**2
    if abs(got - want) > 1e-4 * want:  # reduced-precision matrix units round; the bug is 20 times larger
        raise RunError(
            f"jax {jax.__version__} on {jax.default_backend()} sums wrongly: {got:.0f} for {want:.0f} "
            "(jax issue 39103); install another version, e.g. jax==0.10.1"
        )
