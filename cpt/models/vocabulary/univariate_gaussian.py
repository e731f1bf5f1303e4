"""New tokens are drawn dimension by dimension, with the mean and deviation of the old ones."""

from __future__ import annotations

from cpt.models.vocabulary._base import Fill, Request, each, per_dimension


def univariate_gaussian(request: Request) -> Fill:
    """N(mean, std) of each dimension of each matrix (a baseline of Mundra et al. 2024, arXiv 2407.05841). No options.

    Such rows are as long as the old ones and know nothing of how dimensions go together, so they may win over old
    tokens.
    """
    request.options()
    return each(lambda old_KxD, rng: per_dimension(old_KxD, len(request.wanted_M), rng), request)
