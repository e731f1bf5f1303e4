"""New tokens are mixed from their nearest neighbours in word vectors that both languages share (WECHSEL)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.sparse import csr_array, vstack

from cpt.errors import ConfigError, DataError
from cpt.models.vocabulary._auxiliary import Vectors, read_vectors
from cpt.models.vocabulary._base import Fill, Matrices, Request, chunks, is_text, per_dimension
from cpt.models.vocabulary._overlap import pieces_of
from cpt.models.vocabulary._weights import combined, nearest_softmax, unit


def wechsel(request: Request) -> Fill:
    """Minixhofer et al. 2022 (arXiv 2112.06598): softmax over the cosines of the nearest old tokens.

    A token's vector is the mean of the words that are written with it, weighted by their frequency; where a
    `dictionary` is given the old words' vectors are rotated onto the new ones' by orthogonal Procrustes. A new token's
    row is `sum_j w_j e_j` over its `neighbours` nearest old tokens, `w = softmax(cos / temperature)`. Tokens without
    such a word are drawn from N(mean, std) of each dimension. The paper makes the row of every token that is not
    special this way, which is `copy="special"`.

    Options: `neighbours` (10), `temperature` (0.1).

    Raises:
      ConfigError: no `auxiliary`, no such file, an option out of range.
      DataError: the two files have vectors of different lengths, the dictionary does not fit them, no token has a
        vector.
    """
    options = request.options(neighbours=10, temperature=0.1)
    for name, value in options.items():
        if not value:
            raise ConfigError(f"{request.where}options.{name}: 0 is not positive")
    new_words, old_words = _both(request)
    old_VxA, has_V = old_words.of_tokens(request.old)
    theirs, wanted_M = pieces_of(request.old), request.wanted_M
    old_N = np.array([i for i in request.known_K if has_V[i] and is_text(theirs[i])], np.int64)
    new_VxA, has_W = new_words.of_tokens(request.new)
    has_M = has_W[wanted_M] & (new_VxA[wanted_M] != 0).any(1)
    if not len(old_N) or (len(wanted_M) and not has_M.any()):
        which = "new" if len(old_N) else "old"
        raise DataError(
            f"{request.spec.auxiliary}: no word of it has one of the {which} tokens; give vectors of that language"
        )
    request.say(
        f"wechsel: {has_M.sum():,} tokens from their {options['neighbours']} nearest of {len(old_N):,}, "
        f"{(~has_M).sum():,} without a vector drawn"
    )
    old_NxA, new_MxA = unit(old_VxA[old_N]), unit(new_VxA[wanted_M[has_M]])
    weigh = lambda rows: nearest_softmax(new_MxA[rows] @ old_NxA.T, options["neighbours"], options["temperature"])  # noqa: E731
    parts = [csr_array(weigh(rows)) for rows in chunks(len(new_MxA), "similarities")]
    weights_MxN = vstack(parts) if parts else None

    def fill(matrices: Matrices) -> Matrices:
        out = {}
        for name, old_VxD in matrices.items():
            out[name] = per_dimension(old_VxD[request.known_K], len(wanted_M), request.rng(name))
            if parts:
                out[name][has_M] = combined(weights_MxN, old_VxD[old_N])
        return out

    return fill


def _both(request: Request) -> tuple[Vectors, Vectors]:
    """Vectors of the new and of the old words, in one space."""
    spec = request.spec
    new = read_vectors(request.required("auxiliary"), f"{request.where}auxiliary")
    if not spec.auxiliary_of_old:
        return new, new
    old = read_vectors(spec.auxiliary_of_old, f"{request.where}auxiliary_of_old")
    a, b = new.vectors_NxA.shape[1], old.vectors_NxA.shape[1]
    if a != b:
        raise DataError(f"{spec.auxiliary_of_old}: vectors of {b} numbers, of {a} in {spec.auxiliary}; give two alike")
    if not spec.dictionary:
        request.say("wechsel: no dictionary, so the two files of vectors are taken to be aligned")
        return new, old
    pairs = _pairs(spec.dictionary, old, new, f"{request.where}dictionary")
    rotation_AxA = rotation(old.vectors_NxA[pairs[:, 0]], new.vectors_NxA[pairs[:, 1]])
    request.say(f"wechsel: old vectors rotated by {len(pairs):,} pairs of {spec.dictionary}")
    turned = (old.vectors_NxA.astype(np.float64) @ rotation_AxA).astype(np.float32)
    return new, Vectors(old.words, turned, old.counts_N)


def rotation(old_PxA: np.ndarray, new_PxA: np.ndarray) -> np.ndarray:
    """The orthogonal R with the least `|old R - new|` (Schonemann 1966), float64 `[A, A]`."""
    return orthogonal_procrustes(old_PxA.astype(np.float64), new_PxA.astype(np.float64))[0]


def _pairs(path: str, old: Vectors, new: Vectors, field: str) -> np.ndarray:
    """Rows of the words of each pair, both tried as they are, in lower case and with a capital: int64 `[P, 2]`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{field}={path}: no such file; give one with two words in each line, a tab between them")
    found, lines = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        theirs, _, ours = line.strip().partition("\t")
        lines += bool(ours)
        for a in dict.fromkeys((theirs, theirs.lower(), theirs.title())):
            for b in dict.fromkeys((ours, ours.lower(), ours.title())):
                if a in old.row and b in new.row:
                    found.append((old.row[a], new.row[b]))
    if not found:
        raise DataError(
            f"{file}: none of its {lines:,} pairs is in the two files of vectors; a line is the old language's word, a "
            "tab, the new one's"
        )
    return np.unique(np.array(found, np.int64), axis=0)
