"""A keyed random order that needs no memory: a pseudorandom permutation of `range(n)` with random access.

Shuffling a corpus of 10^9 rows as an array costs gigabytes and must be redone on every host. A small block cipher
does the same job as a function: it maps position i to a row, each row exactly once, in O(1). Write i as a pair (left,
right) with left < a, right < b and a * b just above n; a Feistel network adds to one half a keyed hash of the other,
modulo a or b, turn by turn. Each round can be undone, so the whole is a bijection of range(a * b). Where the result
is not below n it is enciphered again until it is (cycle walking), which makes it a bijection of range(n); since a * b
- n < a, that is rare. Both are from Black & Rogaway 2002, "Ciphers with arbitrary finite domains" (generalised
Feistel, cycle walking).

The order is part of a run's identity, so it is made of blake2b and 64-bit integer arithmetic only: the same on every
machine and under every version of numpy. It is well mixed, not cryptographically secure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

LARGEST = 2**40
# Four rounds are indistinguishable from random for large halves (Luby & Rackoff 1988); small n have small halves.
ROUNDS = 8


class KeyedPermutation:
    """The permutation of `range(n)` that belongs to `key`.

    Args:
      n: size of the domain, 1 <= n <= 2**40.
      key: any string or integer; `1` and `"1"` are different keys, and a key gives unrelated orders for different n.

    Raises:
      ValueError: n out of range.
    """

    def __init__(self, n: int, key: str | int):
        self._one, self.n, self.key = KeyedPermutations(n, [key]), int(n), key

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """int64 of the same shape as `indices`: the row at each position.

        Raises:
          IndexError: a position outside 0..n-1.
        """
        positions = np.asarray(indices, dtype=np.int64)
        return self._one(positions.reshape(1, -1)).reshape(positions.shape)


class KeyedPermutations:
    """The permutations of `range(n)` that belong to some keys, applied together: for short rows the cost of one.

    Args:
      n, keys: as for `KeyedPermutation`.

    Raises:
      ValueError: n out of range.
    """

    def __init__(self, n: int, keys: Sequence[str | int]):
        if not 1 <= n <= LARGEST:
            raise ValueError(f"a permutation needs 1 <= n <= 2**40, got {n}")
        self.n = int(n)
        a = math.isqrt(self.n - 1) + 1
        self._a, self._b = np.uint64(a), np.uint64(-(-self.n // a))
        salts = [f"{n:x}/{r:x}".encode() for r in range(ROUNDS)]
        names = [(f"str:{key}" if isinstance(key, str) else f"int:{int(key)}").encode() for key in keys]
        digests = b"".join(hashlib.blake2b(m, digest_size=8, salt=s).digest() for s in salts for m in names)
        self._keys_RxK = np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(ROUNDS, len(names))

    def __call__(self, indices_KxN: np.ndarray) -> np.ndarray:
        """int64 `[K, N]`: the row at each position, those of row k in the order of the k-th key.

        Raises:
          IndexError: a position outside 0..n-1.
        """
        positions = np.asarray(indices_KxN, dtype=np.int64)
        if positions.size and not (positions.min() >= 0 and positions.max() < self.n):
            raise IndexError(f"positions must lie in 0..{self.n - 1}, got {positions.min()}..{positions.max()}")
        out = self._encipher(positions.astype(np.uint64), self._keys_RxK[:, :, None])
        while (outside := out >= self.n).any():
            out[outside] = self._encipher(out[outside], self._keys_RxK[:, np.nonzero(outside)[0]])
        return out.astype(np.int64)

    def _encipher(self, x: np.ndarray, keys_R: np.ndarray) -> np.ndarray:
        """One pass of the network over range(a * b); each round's keys fit the shape of `x`."""
        left, right = np.divmod(x, self._b)
        for r, keys in enumerate(keys_R):
            if r % 2 == 0:
                left = (left + _hash(right, keys) % self._a) % self._a
            else:
                right = (right + _hash(left, keys) % self._b) % self._b
        return left * self._b + right


def _hash(x: np.ndarray, key: np.ndarray) -> np.ndarray:
    """64 well-mixed bits of each element: the key added, then the finaliser of splitmix64 (Steele et al. 2014)."""
    x = x + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
