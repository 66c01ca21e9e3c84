"""Information criteria as different programs count parameters and observations."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from ..design.independence import cluster_labels
from ..estimation.fit import Fit

__all__ = ["information_criteria"]


def information_criteria(result: Fit) -> Any:
    """See `LMMResult.information_criteria`."""
    result.require_estimates("information_criteria", "look at llf")
    model = result.model
    rank = model.problem.rank
    every, variances = result.n_parameters, result.n_parameters - rank
    subjects = int(cluster_labels(model.design).max()) + 1
    left = result.nobs - rank if result.reml else result.nobs
    rows = {
        "lme4": (every, result.nobs),
        "nlme": (every, left),
        "mmrm": (variances, subjects),
        "SAS": (variances if result.reml else every, subjects),
    }
    counts = np.array([k for k, _ in rows.values()])
    sizes = np.array([n for _, n in rows.values()])
    return model.table(
        {
            "convention": list(rows),
            "parameters": counts,
            "n": sizes,
            "aic": result.criterion + 2.0 * counts,
            "bic": result.criterion + counts * np.array([log(n) for n in sizes.tolist()]),
        }
    )
