"""Every new token starts as the mean of the old ones."""

from __future__ import annotations

import numpy as np

from cpt.models.vocabulary._base import Fill, Request, each


def mean(request: Request) -> Fill:
    """The mean row of each matrix (Hewitt 2021; a baseline of Mundra et al. 2024, arXiv 2407.05841). No options."""
    request.options()
    rows = len(request.wanted_M)
    return each(lambda old_KxD, rng: np.tile(old_KxD.mean(0, dtype=np.float64), (rows, 1)), request)
