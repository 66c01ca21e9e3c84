"""Residual structures from arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..design.residual import ResidualPart
from ..support.arguments import checked
from ..tables.columns import Column
from .residual import ParsedResidual, bind_residual, refuse_unknown
from .variance_arrays import Variance, array_column

__all__ = ["Residual"]


@checked
@dataclass(frozen=True)
class Residual:
    """How the residuals of a subject vary together, from arrays: `residual` of `LinearMixedModel`.

    Parameters
    ----------
    name : str
        Of the structure, as in ``residual=`` of `lmm`.
    subject : (n,) array
        Subject of each row.
    time : (n,) or (n, d) array, optional
        Visits (integers or labels), times or coordinates; by default the order of a subject's rows.  For ``us@cs`` and
        its kin the responses and the visits, as two columns.
    by : (n,) array, optional
        Groups of subjects with parameters of their own.
    factors : int, optional
        Of the structures fa (by default 1) and fa0 (by default as many as visits).
    nugget : bool
        Whether a structure of distances has a share of the variance that no two rows have in common.
    variance : Variance, optional
        Standard deviations by covariates, beside the correlations of the structure.
    """

    name: str
    subject: Any
    time: ArrayLike | Any = None
    by: Any = None
    factors: int | None = None
    nugget: bool = False
    variance: Variance | None = None

    def bind(self, n: int) -> ResidualPart:
        """The residual part of a model of n rows.

        Raises
        ------
        LMMError
            For arrays of another length, and as `lmm` with ``residual=``.
        """
        refuse_unknown(self.name)
        parsed, times, subject, by = self.columns(n)
        part = bind_residual(parsed, times, [subject], by, None)
        return part if self.variance is None else self.variance.bind(part, n)

    def columns(self, n: int) -> tuple[ParsedResidual, list[Column], Column, Column | None]:
        """The arrays as columns of n rows: what they are, of the visits, the subjects and `by`.

        Raises
        ------
        LMMError
            For arrays of another length, or with gaps.
        """
        subject = array_column("subject", self.subject, n)
        if self.time is None:
            codes = np.asarray(subject.codes(None)[0])
            order = np.argsort(codes, kind="stable")
            sizes = np.bincount(codes)
            place = np.empty(n, dtype=np.int64)
            place[order] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            times = [Column("residual.time", place)]
        elif getattr(self.time, "ndim", 1) == 2:
            times = [array_column("time", column, n) for column in np.asarray(self.time).T]
        else:
            times = [array_column("time", self.time, n)]
        by = None if self.by is None else array_column("by", self.by, n)
        listed = "time" if len(times) == 1 else ", ".join(f"time[{j}]" for j in range(len(times)))
        text = f"{self.name}({listed} | subject{', by=by' if by is not None else ''})"
        parsed = ParsedResidual(
            text, self.name, tuple(listed.split(", ")), ("subject",), None if by is None else "by", self.factors,
            self.nugget,
        )  # fmt: skip
        return parsed, times, subject, by
