"""Variations of a plan beside its size: how alike the observations of a group are, and how many are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import LMMError
from ..estimation.stated import moved
from ..support.seeds import generator_of

if TYPE_CHECKING:
    from ..design.design import Design
    from ..design.replication import Rows
    from ..result import LMMResult

__all__ = ["left_out", "with_icc"]


def with_icc(truth: LMMResult, value: float) -> LMMResult:
    """The model with this share of the random effects in the variance around the fixed part, all in proportion.

    Raises
    ------
    LMMError
        Where there are no random effects to grow.
    """
    truth.model.needs_independent_residuals("along='icc'")
    found = truth.icc()
    share = sum(found.values()) if isinstance(found, dict) else float(found)
    if not share > 0.0 and value > 0.0:
        raise LMMError(
            "along='icc': the random effects have no variance that could be made larger; state one by assume"
        )
    total = truth.sigma2 / (1.0 - share)
    scale = 0.0 if value == 0.0 else value / share
    return moved(truth, None, {name: scale * block for name, block in truth.G.items()}, (1.0 - value) * total)


def left_out(design: Design, value: float, seed: int) -> Rows:
    """The rows without a share of them, at random, and the levels of the factors that are left."""
    n = len(design.exog)
    kept = np.sort(generator_of(seed).permutation(n)[: n - round(value * n)])
    return kept, tuple(np.unique(f.grouping.index[kept], return_inverse=True)[1].reshape(-1) for f in design.factors)
