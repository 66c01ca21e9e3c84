"""Subjects who leave a study before its end, or miss visits: which responses of a draw are observed.

With P(leaves before visit j | seen until then) = expit(logit rate_j + slope (y_last - centre)), y_last the last
response observed, what is missing depends on nothing (slope = 0: missing completely at random) or on what is observed
only (missing at random): Diggle, P. and Kenward, M. G. (1994), Informative drop-out in longitudinal data analysis,
Appl. Statist. 43, 49-93, section 2, without their dependence on the response that is missed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import check_count, number_array
from ..support.seeds import Seed, beside, check_first, key_of, stream
from ..support.types import Array
from ..tables.columns import Table
from .draws import Draw, Drawing, Generating, drawing, draws, stream_size

if TYPE_CHECKING:
    from ..design.design import Design

__all__ = ["Dropout", "dropping", "simulate_with_dropout"]


BESIDE = 1 << 40
"""Place of the stream of uniform numbers beside that of the responses."""


@checked
@dataclass(frozen=True)
class Dropout:
    """A model of who leaves a study, for `LMMResult.simulate`, `LMMResult.simulate_fit`, `power` and `power_curve`.

    Before each visit but the first a subject leaves with a probability of ``rate`` (missing completely at random), or,
    with a ``slope``, of expit(logit(rate) + slope (y - centre)), y the last response observed (missing at random).

    Parameters
    ----------
    rate : float or sequence of float
        Probability, for each visit after the first where it is a sequence; for a subject whose last response is the
        centre.
    slope : float
        Change of the logit per unit of the last response; several rows of a visit count by their mean.
    centre : float, optional
        By default the mean of the expected responses.
    visit : str or (nobs,) array, optional
        What orders the rows of a subject: a column of the data or of X.  By default their order.
    subject : str, optional
        The grouping factor of those who leave, where there are several.
    monotone : bool
        Whether those who leave stay away; False: each visit after the first is missed by itself.

    Examples
    --------
    A tenth leaves before each visit, more of those who react slowly:

    >>> import numpy as np
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> slow = flc.Dropout(0.1, slope=0.02, visit="Days")
    >>> Y = fit.simulate(1000, seed=1, dropout=slow)
    >>> observed = 1.0 - np.isnan(Y).mean(axis=0).reshape(18, 10).mean(axis=0)
    >>> bool(observed[0] == 1.0 and 0.2 < observed[-1] < 0.5)
    True
    """

    rate: Any
    slope: float = 0.0
    centre: float | None = None
    visit: Any = None
    subject: str | None = None
    monotone: bool = True

    def __post_init__(self) -> None:
        rate = number_array(self.rate, "rate")
        if rate.ndim > 1 or not rate.size or not ((rate >= 0.0) & (rate < 1.0)).all():
            raise LMMError(f"rate={self.rate!r:.60} must be a probability from 0 to below 1, or one for each visit")
        for name in ("slope", "centre"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value):
                raise LMMError(f"{name}={value} must be finite")


def check_dropout(dropout: Any) -> None:
    """Refuse what is no model of dropout."""
    if not isinstance(dropout, Dropout):
        raise LMMError(f"dropout must be a Dropout, e.g. fastlmm_core.Dropout(0.1), not {dropout!r:.60}")


class _Visits:
    """The visits of the subjects of a design, and what a dropout model says of them.

    Attributes
    ----------
    of_row : (n,) int array
        Visit of each row; visits stand by their number within the subject, subjects in one order.
    steps : list of (rate, visits, subjects)
        For each number above 0.
    """

    def __init__(self, source: Generating, dropout: Dropout) -> None:
        model = source.model
        design = model.design
        names = [factor.grouping.name for factor in model.factors]
        if dropout.subject is None and len(names) > 1:
            raise LMMError(f"dropout: of the grouping factors {', '.join(names)}, whose levels leave? Give subject=")
        if dropout.subject is not None and dropout.subject not in names:
            raise LMMError(
                f"dropout: subject={dropout.subject!r} is not a grouping factor; there are {', '.join(names)}"
            )
        place = 0 if dropout.subject is None else names.index(dropout.subject)
        if model.factors:
            subject = np.asarray(model.factors[place].grouping.index)
        else:
            assert design.residual is not None
            subject = np.asarray(design.residual.subject.count().index)
        order = visit_order(design, dropout.visit, subject)
        self.slope, self.monotone = dropout.slope, dropout.monotone
        mean = source.population_mean
        self.centre = float(mean.mean()) if dropout.centre is None else dropout.centre
        pairs, self.of_row = np.unique(np.column_stack([subject, order]), axis=0, return_inverse=True)
        self.of_row = self.of_row.reshape(-1)
        first = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
        self.n_subjects, self.n_visits = len(first), len(pairs)
        number = np.arange(len(pairs)) - np.repeat(first, np.diff(np.append(first, len(pairs))))
        owner = np.cumsum(np.diff(pairs[:, 0], prepend=-1) != 0) - 1
        self.first = first
        self.sizes = np.bincount(self.of_row, minlength=len(pairs))
        rate = np.asarray(dropout.rate, dtype=np.float64)
        kinds = np.unique(order)
        if rate.ndim and len(rate) != len(kinds) - 1:
            raise LMMError(
                f"dropout: rate has {len(rate)} values; the design has {len(kinds)} visits, so give {len(kinds) - 1}, "
                "for all but the first, or one number"
            )
        self.steps: list[tuple[Array, NDArray[np.intp], NDArray[np.intp]]] = []
        for k in range(1, int(number.max()) + 1):
            now = np.flatnonzero(number == k)
            own = rate[np.searchsorted(kinds, pairs[now, 1]) - 1] if rate.ndim else np.full(len(now), float(rate))
            self.steps.append((own, now, owner[now]))

    def missing(self, Y: Array, uniform: Array) -> NDArray[np.bool_]:
        """Which responses (count, n) are not observed, from numbers (count, n_visits) between 0 and 1."""
        means = np.zeros((len(Y), self.n_visits))
        if self.slope:
            order = np.argsort(self.of_row, kind="stable")
            starts = np.append(0, np.cumsum(self.sizes)[:-1])
            means = np.add.reduceat(Y[:, order], starts, axis=1) / self.sizes
        last = means[:, self.first]
        away = np.zeros((len(Y), self.n_visits), dtype=bool)
        gone = np.zeros((len(Y), self.n_subjects), dtype=bool)
        for rate, now, who in self.steps:
            with np.errstate(over="ignore"):
                # expit(logit rate + x) without a logarithm of zero
                share = rate / (rate + (1.0 - rate) * np.exp(-self.slope * (last[:, who] - self.centre)))
            left = uniform[:, now] < share
            if self.monotone:
                left |= gone[:, who]
            gone[:, who] = left
            away[:, now] = left
            last[:, who] = np.where(left, last[:, who], means[:, now])
        return np.asarray(away[:, self.of_row])


def visit_order(design: Design, visit: Any, subject: NDArray[np.intp]) -> NDArray[np.intp]:
    """Numbers that order the rows of each subject.

    Raises
    ------
    LMMError
        For a column that there is not, or values of another number than rows.
    """
    n = len(design.exog)
    if visit is None:
        order = np.argsort(subject, kind="stable")
        starts = np.flatnonzero(np.diff(subject[order], prepend=-1))
        out = np.empty(n, dtype=np.intp)
        out[order] = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
        return out
    if isinstance(visit, str):
        table = None if design.source is None else Table(design.source.table)
        if table is not None and visit in table:
            column = table.column(visit, "visit")
            gaps = column.missing()
            if gaps is not None and (gaps if design.kept is None else gaps[design.kept]).any():
                raise LMMError(f"dropout: visit={visit!r} has missing values; say of each row which visit it is of")
            return np.asarray(column.codes(design.kept)[0], dtype=np.intp)
        if visit not in design.exog_names:
            raise LMMError(f"dropout: visit={visit!r} is a column neither of the data nor of X")
        visit = design.exog[:, design.exog_names.index(visit)]
    values = number_array(visit, "visit")
    if values.shape != (n,) or not np.isfinite(values).all():
        raise LMMError(f"dropout: visit must hold {n} finite numbers, one for each row, not the shape {values.shape}")
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def simulate_with_dropout(
    source: Generating, n: int, seed: Seed, first: int, how: str | Draw, dropout: Dropout
) -> Array:
    """The n responses (n, nobs) of `simulate`, NaN where they are not observed.

    Who leaves comes from streams beside those of the responses, which are the same with and without dropout.
    """
    check_count(n, "n")
    check_first(first, seed)
    check_dropout(dropout)
    draw, key = drawing(source, how), key_of(seed)
    visits = _Visits(source, dropout)
    blocks = draws(draw, n, key, stream_size(draw, source.model.nobs), first)
    return np.concatenate([_observed(block, key, visits) for block in blocks])


def _observed(block: Drawing, key: NDArray[np.uint64], visits: _Visits) -> Array:
    Y = np.asarray(block(), dtype=np.float64)
    uniform = beside(stream(key, block.block), BESIDE).random((block.skip + len(Y), visits.n_visits))[block.skip :]
    Y[visits.missing(Y, uniform)] = np.nan
    return Y


def dropping(dropout: Dropout | None, rate: float) -> Dropout:
    """A model of dropout at another rate."""
    if dropout is not None:
        check_dropout(dropout)
    return Dropout(rate) if dropout is None else replace(dropout, rate=rate)
