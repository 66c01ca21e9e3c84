"""Where the optimiser starts: second moments, and other points where there may be several minima."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .kernels import floored_factor

if TYPE_CHECKING:
    from .optimize import Criterion
    from .parameters import CovarianceStructure

__all__ = ["many_minima", "moment_start", "other_starts"]

Array = NDArray[np.float64]


def moment_start(criterion: Criterion, structure: CovarianceStructure, n: int, m: int, within: float) -> Array:
    """Theta from the second moments of Z_i'(y_i - X_i beta_OLS), as if all groups had the same Z_i'Z_i.

    At Lambda = 0 the gradient in G holds sum_i Z_i'r_i r_i'Z_i; for balanced data without further
    covariates the result is close to the optimum.  Eigenvalues are kept away from 0, which is stationary.

    Parameters
    ----------
    within : float
        Residual sum of squares within groups.
    """
    q = structure.q
    reml, criterion.reml = criterion.reml, False
    value, _, _ = criterion.evaluate(np.zeros(structure.n_parameters), 1)
    _, r2, _, gradient = criterion.solution()
    criterion.reml = reml
    if value == np.inf:
        return structure.theta(np.eye(q))
    sigma2 = within / max(n - m * q, 1)
    per_group = n / m
    # sum of squares (n I - gradient) r^2 / n; expectation m (per_group^2 G + per_group I) sigma^2
    share = r2 / (n * m * sigma2 * per_group**2)
    shift = n * share - 1.0 / per_group
    floor = 0.1 / per_group
    if structure.one_full:
        return structure.theta(floored_factor(gradient, floor, -share, shift))
    factor = np.zeros((q, q))
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        if block.structure == "full":
            factor[part, part] = floored_factor(gradient[part, part], floor, -share, shift)
        else:
            factor[part, part] = np.diag(np.sqrt(np.maximum(shift - share * np.diag(gradient[part, part]), floor)))
    return structure.theta(factor)


def many_minima(structure: CovarianceStructure, levels: Array) -> bool:
    """Whether so few groups bear so many parameters that a regular minimum may have a lower neighbour."""
    if structure.q < 3:
        return False
    _, columns = structure.positions
    # the effects of one grouping factor share its number of levels
    return any((levels == m).sum() >= 3 and m < 20 * np.count_nonzero(levels[columns] == m) for m in np.unique(levels))


def other_starts(structure: CovarianceStructure, levels: Array, n: int) -> list[Array]:
    """Theta to start from where there may be several minima, as at the boundary.

    Multiples of the identity; from three random effects on also a small one, near optima of low rank, and points where
    one effect prevails.
    """
    unit = np.sqrt(levels / n)
    sizes = [np.ones(structure.q), 4.0 * unit]
    if structure.q >= 3:
        sizes.append(0.3 * unit)
        sizes += [unit * np.where(np.arange(structure.q) == j, 4.0, 0.3) for j in range(structure.q)]
    return [structure.theta(np.diag(size)) for size in sizes]
