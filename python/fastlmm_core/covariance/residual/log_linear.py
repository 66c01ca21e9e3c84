"""Standard deviations whose logarithm is linear in columns: ``variance="~ 0 + arm"`` (nlme's varIdent), ``"~ x"``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .structure import Array
from .variance_function import Heights, VarianceFunction, half_log_squares, slope_of

__all__ = ["LogLinear", "relative_columns"]


@dataclass(frozen=True)
class LogLinear(VarianceFunction):
    """log s = v phi.

    Parameters
    ----------
    columns : tuple of str
        Names of the covariates. The constant is no combination of them: it belongs to sigma.
    """

    columns: tuple[str, ...]
    name: str = "~"

    @property
    def n_parameters(self) -> int:
        """One for each column."""
        return len(self.columns)

    @property
    def n_columns(self) -> int:
        """The columns."""
        return len(self.columns)

    def at(self, phi: Array, v: Array) -> Heights:
        """log s and its derivatives."""
        k = len(self.columns)
        return Heights(v @ phi, v.T, np.zeros((k, k, len(v))))

    def start(self, residuals: Array, v: Array) -> Array:
        """Regression of log |r|."""
        return slope_of(half_log_squares(residuals), v)

    def labels(self) -> tuple[str, ...]:
        """``logsd_column``."""
        return tuple(f"logsd_{column}" for column in self.columns)


def relative_columns(W: Array) -> Array:
    """Which columns of W (n, c) to keep, so that none is a combination of those before it and of the constant.

    Where the constant is itself a combination of columns, the first of that combination goes: it is the reference.
    """
    c = W.shape[1]
    size = np.linalg.norm(W, axis=0)
    scaled = W / np.where(size > 0.0, size, 1.0)
    one = np.ones(len(W)) / np.sqrt(len(W))
    combination, *_ = np.linalg.lstsq(scaled, one, rcond=None)
    kept = [k for k in range(c) if size[k] > 0.0]
    if kept and np.linalg.norm(scaled @ combination - one) < 1e-9:
        kept.remove(int(np.flatnonzero(np.abs(combination) > 1e-9)[0]))
    basis = one[:, None]
    out = []
    for k in kept:
        rest = scaled[:, k] - basis @ (basis.T @ scaled[:, k])
        rest -= basis @ (basis.T @ rest)
        length = float(np.linalg.norm(rest))
        if length > 1e-9:
            basis = np.column_stack((basis, rest / length))
            out.append(k)
    return np.array(out, dtype=np.intp)
