"""New tokens are mixed from the most similar tokens that both vocabularies have (FOCUS)."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array, vstack

from cpt.errors import DataError
from cpt.models.vocabulary._auxiliary import read_vectors
from cpt.models.vocabulary._base import Fill, Matrices, Request, chunks, is_text, per_dimension
from cpt.models.vocabulary._overlap import pieces_of
from cpt.models.vocabulary._weights import combined, sparsemax, unit


def focus(request: Request) -> Fill:
    """Dobler and de Melo 2023 (arXiv 2305.14481): sparsemax over cosines of auxiliary vectors.

    A new token's row is `sum_j w_j e_j` over the rows e of the tokens that overlap and have a vector, with `w =
    sparsemax(cos(x, x_j))`. Tokens without a vector are drawn from N(mean, std) of each dimension. The vectors are
    best those of the new tokens themselves, trained on text that the new tokenizer cut; words will do. No options.

    Raises:
      ConfigError: no `auxiliary`.
      DataError: it has no vector of an overlapping token, or none of a new one.
    """
    request.options()
    vectors = read_vectors(request.required("auxiliary"), f"{request.where}auxiliary")
    pieces = pieces_of(request.new)
    row_V = vectors.of_pieces(pieces)
    shared_S = np.array([i for i, p in enumerate(pieces) if request.origin_V[i] >= 0 and is_text(p)], np.int64)
    shared_S, wanted_M = shared_S[row_V[shared_S] >= 0], request.wanted_M
    has_M = row_V[wanted_M] >= 0
    if not len(shared_S) or (len(wanted_M) and not has_M.any()):
        which = "new" if len(shared_S) else "overlapping"
        raise DataError(
            f"{request.spec.auxiliary}: none of its {len(vectors.words):,} words is one of the {which} tokens; give "
            "vectors of the language, or of the tokens, of the new tokenizer"
        )
    request.say(
        f"focus: {has_M.sum():,} tokens from {len(shared_S):,} that overlap, {(~has_M).sum():,} without a vector drawn"
    )
    anchors_SxA = unit(vectors.vectors_NxA[row_V[shared_S]])
    new_NxA = unit(vectors.vectors_NxA[row_V[wanted_M[has_M]]])
    parts = [csr_array(sparsemax(new_NxA[rows] @ anchors_SxA.T)) for rows in chunks(len(new_NxA), "similarities")]
    weights_NxS, origin_S = vstack(parts) if parts else None, request.origin_V[shared_S]

    def fill(matrices: Matrices) -> Matrices:
        out = {}
        for name, old_VxD in matrices.items():
            out[name] = per_dimension(old_VxD[request.known_K], len(wanted_M), request.rng(name))
            if parts:
                out[name][has_M] = combined(weights_NxS, old_VxD[origin_S])
        return out

    return fill
