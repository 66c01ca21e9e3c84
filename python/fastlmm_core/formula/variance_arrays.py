"""Variance functions from arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..covariance.residual.catalogue import of_covariate, variance_names
from ..covariance.residual.grouped_variance import GroupedVariance
from ..covariance.residual.log_linear import LogLinear, relative_columns
from ..covariance.residual.variance_function import VarianceFunction
from ..design.residual import ResidualPart, WrittenVariance
from ..errors import LMMError
from ..support.arguments import checked, near
from ..support.types import Array
from ..tables.columns import Column
from .matrices import floats
from .variance import independent_rows, refuse_zeros, with_variances

__all__ = ["LOG_LINEAR", "Variance", "array_column"]


LOG_LINEAR = "log-linear"


@checked
@dataclass(frozen=True)
class Variance:
    """How the standard deviations of residuals depend on covariates, from arrays.

    It is `variance` of a `Residual`, or by itself `residual` of a `LinearMixedModel` where residuals are independent.

    Parameters
    ----------
    name : {"log-linear", "power", "exp", "constpower", "constprop"}
        Of the function; "log-linear" is a formula in ``variance=`` of `lmm`.
    covariate : (n,) array, or (n, k) array or DataFrame
        Several columns with "log-linear" only: log standard deviations are linear in them.  The constant needs no
        column, it belongs to sigma; what is a combination of it and of columns before is left out.
    by : (n,) array, optional
        Groups with parameters of their own, not with "log-linear".

    Examples
    --------
    >>> import numpy as np
    >>> import fastlmm_core as flc
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(1.0, 9.0, 200)
    >>> y = 2.0 + x + x * rng.normal(size=200)
    >>> X = np.column_stack([np.ones(200), x])
    >>> fit = flc.LinearMixedModel(y, X, residual=flc.Variance("power", x)).fit()
    >>> fit.residual_parameters()["term"].tolist()
    ['sigma2|Residual', 'power']
    """

    name: str
    covariate: Any
    by: Any = None

    def bind(self, part: ResidualPart | None, n: int) -> ResidualPart:
        """The residual part with standard deviations by covariates.

        Parameters
        ----------
        part : ResidualPart or None
            The structure; None where the rows are independent.
        n : int

        Raises
        ------
        LMMError
            For an unknown function, arrays of another length, columns without information on variances, or zeros where
            the function is not defined.
        """
        if self.name != LOG_LINEAR and self.name not in variance_names():
            known = (LOG_LINEAR, *variance_names())
            raise LMMError(f"variance.name: there is no function {self.name!r}; {near(self.name, known)}")
        by = "" if self.by is None else ", by=by"
        written = "~ covariate" if self.name == LOG_LINEAR else f"{self.name}(covariate{by})"
        function, v, kept = self._function(n)
        base = independent_rows(written, n) if part is None else part
        return with_variances(base, function, v, WrittenVariance(written, None, kept, True))

    def _function(self, n: int) -> tuple[VarianceFunction, Array, Any]:
        matrix, names = self.matrix(n)
        if self.name == LOG_LINEAR:
            if self.by is not None:
                raise LMMError('variance.by goes with functions of one covariate; give "log-linear" columns by group')
            kept = relative_columns(matrix)
            if not len(kept):
                raise LMMError("variance.covariate has no column that varies: leave the variance out")
            return LogLinear(tuple(names[k] for k in kept)), matrix[:, kept], kept.astype(np.intp)
        x = matrix[:, 0]
        refuse_zeros(self.name, x, "covariate", "residual.variance")
        function = of_covariate(self.name, float(np.abs(x).mean()))
        if self.by is None:
            return function, x[:, None], None
        codes, levels = array_column("variance.by", self.by, n).codes(None)
        return GroupedVariance(function, tuple(map(str, levels.tolist()))), np.column_stack([x, codes]), None

    def matrix(self, n: int) -> tuple[Array, list[str]]:
        """The columns of the covariate (n, k), and their names.

        Raises
        ------
        LMMError
            For arrays of another length, or with gaps, and several columns where the function takes one.
        """
        wide = getattr(self.covariate, "ndim", 1) == 2
        values = np.asarray(self.covariate) if wide else self.covariate
        given = list(values.T) if wide else [values]
        if wide and len(given) != 1 and self.name != LOG_LINEAR:
            raise LMMError(
                f'variance.covariate has {len(given)} columns, and {self.name} takes one; "log-linear" takes more'
            )
        labels = getattr(self.covariate, "columns", None) if wide else None
        names = ["covariate"] if not wide else [f"covariate[{j}]" for j in range(len(given))]
        columns = [array_column(f"variance.{name}", column, n) for name, column in zip(names, given, strict=True)]
        matrix = np.column_stack([floats(column, None) for column in columns])
        return matrix, names if labels is None else [str(label) for label in labels]


def array_column(name: str, values: Any, n: int) -> Column:
    """An array of a residual structure as a column of n rows.

    Raises
    ------
    LMMError
        For another length, or gaps.
    """
    column = Column(f"residual.{name}", values).settle()
    if len(column) != n:
        raise LMMError(f"residual.{name} has {len(column)} values but y has {n}; give one per observation")
    gap = column.missing()
    if gap is not None and gap.any():
        raise LMMError(f"residual.{name} is missing at row {int(np.flatnonzero(gap)[0])}; remove such rows")
    return column
