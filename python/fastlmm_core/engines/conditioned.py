"""What conditioned problems hold, whatever engine serves them.

`OneFactorProblem` has the same, and is a tuple, which is made in less time than the rest of a small fit takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..covariance.parameters import CovarianceStructure
from ..support.blas_threads import quiet_product
from ..support.types import Array, Index

__all__ = ["ConditionedProblem"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ConditionedProblem:
    """Sizes, fixed effects, and the way back to the caller's units.

    Attributes
    ----------
    n : int
        Observations.
    m : int
        Levels of the factor that has most, or subjects.
    structure : CovarianceStructure
        Of all random effects, side by side.
    x_scale : (2, r) array
        Shifts and scales of the columns of X that are kept, as applied row by row.
    x_rows : (r, r) array
        From shifted and scaled rows to conditioned ones.
    x_constant : bool
        Whether X has a constant column.
    x_map : (p, r) array
        X_o = X x_map for the r columns kept (zero rows elsewhere).
    z_map : (q, q) array
        Z_o = Z z_map, b = z_map b_o; block diagonal.
    beta_base : (p,) array
        Coefficients already removed from y: beta = beta_base + scale * x_map @ beta_o.
    scale : float
        Standard deviation of the residual of y, by which it was divided.
    kept : (r,) array
        Columns of X kept.
    log_constant : float
        -sum(log(weights)).
    log_jacobian : float
        2 log|det| of x_map on the kept columns.
    saturated : bool
        Whether the columns of X and those of Z, a set for each level, span all rows: no row tells the residual variance
        by itself.
    outside : int
        Dimensions that Z leaves to X where that is so.
    """

    n: int
    m: int
    structure: CovarianceStructure
    x_scale: Array
    x_rows: Array
    x_constant: bool
    x_map: Array
    z_map: Array
    beta_base: Array
    scale: float
    kept: Index
    log_constant: float
    log_jacobian: float
    saturated: bool = False
    outside: int = 0

    @property
    def rank(self) -> int:
        """Number of fixed-effect columns kept."""
        return len(self.kept)

    @property
    def dropped(self) -> Index:
        """Columns of X left out, being combinations of those before them."""
        return np.setdiff1d(np.arange(len(self.x_map)), self.kept)

    def conditioned_x(self, X: Array) -> Array:
        """Rows of X_o (n, r)."""
        return quiet_product((X[:, self.kept] - self.x_scale[0]) * self.x_scale[1], self.x_rows)

    def conditioned_z(self, Z: Array) -> Array:
        """Rows of Z_o (n, q), the columns of all factors side by side."""
        return quiet_product(Z, self.z_map)
