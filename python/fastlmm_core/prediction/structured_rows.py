"""Predictions where the residuals have a structure: from what a caller gives to means, errors and their df."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..design.grouping import Codes
from ..design.residual import ResidualPart
from ..engines.residual.problem import residual_problem
from ..errors import LMMError
from ..estimation.information import moments
from ..inference.options import MOMENT_DDF, known_df
from ..support.types import Array, Index
from .new_rows import NewRows, refuse_unseen, some_of
from .one_factor import LEAST_DF, solved
from .other_rows import placed_anywhere, placed_rows
from .structured import Observed, Targets, grouped, told

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["Asked", "residuals_left", "structured_rows"]


class Asked(NamedTuple):
    """What is asked for.

    Attributes
    ----------
    data : table, mapping of arrays, or None for the rows of the fit
    chosen : tuple of str
        Factors whose effects are a part of the mean.
    all_told : bool
        Whether the residuals observed of the row's subject count.
    new_levels : str
    interval : str or None
    weights : (n,) array or None
    ddf, information : str
    """

    data: Any
    chosen: tuple[str, ...]
    all_told: bool
    new_levels: str
    interval: str | None
    weights: Array | None
    ddf: str
    information: str


def structured_rows(
    result: Fit, rows: NewRows, asked: Asked, extra: tuple[Any, NewRows] | None, conditioned_x: Any
) -> tuple[Array, Array | None, Array | None]:
    """What is added to the means x'beta of rows (n,), standard errors and degrees of freedom where they are wanted.

    Parameters
    ----------
    result : Fit
    rows : NewRows
    asked : Asked
    extra : (data, NewRows) or None
        Rows that were observed besides those of the fit.
    conditioned_x : callable
        From rows of X to conditioned coordinates.

    Raises
    ------
    LMMError
        For unknown subjects, groups or visits, and Kenward and Roger's method where more than x'beta is predicted.
    """
    model = result.model
    problem = residual_problem(model.problem)
    names = _Names(model)
    observed = _of_fit(result)
    if extra is not None:
        observed = observed.joined(_of_extra(result, extra, names, conditioned_x))
    targets = _targets(result, rows, asked, names, conditioned_x)
    by_moments = asked.interval is not None and result.stated is None and asked.ddf in MOMENT_DDF
    if by_moments and asked.ddf.startswith("kenward-roger") and (asked.chosen or asked.all_told):
        raise LMMError(
            f"ddf={asked.ddf!r} with structured residuals is for effects='population': use ddf='satterthwaite' for "
            "what is told by the rows of a subject"
        )
    found = told(result, observed, targets, asked.interval, by_moments)
    if asked.interval is None:
        return found.add, None, None
    whitened = np.zeros((len(rows.X), problem.rank))
    if result.stated is None:
        whitened = solved(result.solution.chol, found.d)
    variance = found.variance + np.einsum("ij,ij->i", whitened, whitened)
    if not by_moments:
        df = known_df(model, "normal" if result.stated is not None else asked.ddf, rows.X)
        return found.add, np.sqrt(result.sigma2 * variance), df
    used = moments(result, asked.ddf, asked.information)
    assert found.slopes is not None
    df = used.df_of(variance, found.slopes + used.slopes_of(whitened))
    if asked.chosen or asked.all_told:
        df = np.maximum(df, LEAST_DF)
    if used.adjustment is not None:
        variance = variance + ((whitened @ used.adjustment) * whitened).sum(axis=1)
    df[variance == 0.0] = np.inf
    return found.add, np.sqrt(result.sigma2 * variance), df


def residuals_left(result: Fit, model: Model) -> tuple[Array, Callable[[Array], None]]:
    """What the residuals of the fit tell of those of other rows, and what turns normal draws into the rest of them.

    Parameters
    ----------
    result : Fit
    model : Model
        Of the other rows.

    Returns
    -------
    (n,) array
    callable
        Of draws (count, n), in place: with the covariance that is left, relative to sigma^2 and before weights.
    """
    names, part, old = _Names(result.model), model.residual, result.model.residual
    assert part is not None and old is not None
    subject = names.located(names.subject, _subject_labels(part))
    root = model.root_weights
    rest = result.rest if result.model.weights is None else result.rest * np.sqrt(result.model.weights)
    order, starts = grouped(np.asarray(old.subject.codes), old.subject.n_slots)
    codes, begin = grouped(np.asarray(part.subject.codes), part.subject.n_slots)
    mean, roots = np.zeros(model.nobs), []
    for s in range(part.subject.n_slots):
        new = codes[begin[s] : begin[s + 1]]
        at = int(subject[new[0]])
        rows = order[starts[at] : starts[at + 1]] if at >= 0 else order[:0]
        own, count = part.strata[int(part.stratum[new[0]])], len(new)
        where = np.concatenate([part.where[new], old.where[rows]]) if len(rows) else part.where[new]
        joint = own.matrix(result.phi, where)
        told = np.linalg.solve(joint[count:, count:], joint[count:, :count])
        mean[new] = rest[rows] @ told / root[new]
        values, vectors = np.linalg.eigh(joint[:count, :count] - joint[:count, count:] @ told)
        roots.append((new, vectors * np.sqrt(np.maximum(values, 0.0))))

    def correlate(y: Array) -> None:
        for new, half in roots:
            y[:, new] = y[:, new] @ half.T

    return mean, correlate


class _Names:
    """Numbers of the levels of each factor, and of the subjects: those of the fit first, then others observed."""

    def __init__(self, model: Model) -> None:
        part = model.design.residual
        assert part is not None and part.subject.slot_labels is not None
        self.alone = part.independent
        known = model.has_response and not self.alone
        labels = part.subject.slot_labels.tolist() if known else []
        self.subject: dict[Any, int] = {label: i for i, label in enumerate(labels)}
        self.factors: list[dict[Any, int]] = [
            {label: i for i, label in enumerate(f.grouping.labels.tolist())} if model.has_response else {}
            for f in (model.factors if model.structure.q else ())
        ]

    def located(self, own: dict[Any, int], labels: NDArray[Any], add: bool = False) -> Index:
        """Numbers of labels, -1 for unknown ones, which are numbered too where they are added."""
        distinct, index = np.unique(labels, return_inverse=True)
        found = []
        for label in distinct.tolist():
            if add:
                own.setdefault(label, len(own))
            found.append(own.get(label, -1))
        out: Index = np.array(found, dtype=np.intp)[index.ravel()]
        return out


def _subject_labels(part: ResidualPart) -> NDArray[Any]:
    """Of each row."""
    assert part.subject.slot_labels is not None
    labels: NDArray[Any] = part.subject.slot_labels[part.subject.codes]
    return labels


def _of_fit(result: Fit) -> Observed:
    """The rows of the fit, as far as there is a response."""
    model = result.model
    part, problem = model.design.residual, residual_problem(model.problem)
    assert part is not None
    root = model.root_weights
    levels = [f.grouping.index for f in (model.factors if model.structure.q else ())]
    x = problem.xy[:, :-1] / root[:, None]
    if model.has_response:
        return Observed(x, result.marginal_rest, model.exog_re, levels, part, root)
    none = slice(0, 0)
    subject = Codes(part.subject.name, np.zeros(0, dtype=np.int64), 0, 0)
    empty = ResidualPart(
        part.term, part.strata, subject, part.stratum[none], part.where[none], part.labels, part.time, part.by
    )
    return Observed(x[none], np.zeros(0), model.exog_re[none], [level[none] for level in levels], empty, root[none])


def _of_extra(result: Fit, extra: tuple[Any, NewRows], names: _Names, conditioned_x: Any) -> Observed:
    data, rows = extra
    model = result.model
    part = model.design.residual
    assert part is not None and rows.y is not None
    placed = placed_rows(part, data, len(rows.X), "observed")
    if rows.offset is None and model.has_offset:
        raise LMMError("the model has an offset: give that of the observed rows in observed (0 for none)")
    rest = rows.y - rows.X @ np.nan_to_num(result.beta) - (0.0 if rows.offset is None else rows.offset)
    root = np.ones(len(rest)) if rows.weights is None else np.sqrt(rows.weights)
    levels = []
    for f, own in zip(model.factors, names.factors, strict=False):
        labels, index = rows.distinct(f.grouping)
        levels.append(names.located(own, labels, add=True)[index])
    if names.alone:
        subject = np.arange(model.nobs, model.nobs + len(rest))
    else:
        known = set(names.subject)
        subject = names.located(names.subject, _subject_labels(placed), add=True)
        _refuse_observed(placed, known, part)
    codes = Codes(part.subject.name, subject.astype(np.int64), 0, int(subject.max()) + 1)
    own_part = ResidualPart(
        part.term, part.strata, codes, placed.stratum, placed.where, part.labels, part.time, part.by
    )
    Z = np.zeros((len(rest), 0)) if rows.Z is None else rows.Z
    return Observed(conditioned_x(rows.X), rest, Z, levels, own_part, root)


def _refuse_observed(placed: ResidualPart, known: set[Any], part: ResidualPart) -> None:
    """Refuse further rows of subjects of the fit."""
    both = [label for label in np.unique(_subject_labels(placed)).tolist() if label in known]
    if both:
        raise LMMError(
            f"observed has the subjects {some_of(both)} that the model was fitted to; give observations of new levels "
            f"of {part.subject.name} only"
        )


def _targets(result: Fit, rows: NewRows, asked: Asked, names: _Names, conditioned_x: Any) -> Targets:
    model, n = result.model, len(rows.X)
    part = model.design.residual
    assert part is not None
    levels = []
    for f, own in zip(model.factors, names.factors, strict=False):
        if f.grouping.name not in asked.chosen:
            levels.append(np.full(n, -1, dtype=np.intp))
            continue
        labels, index = rows.distinct(f.grouping)
        at = names.located(own, labels)
        if asked.new_levels == "error":
            refuse_unseen(model, labels[at < 0].tolist(), f.grouping.name)
        levels.append(at[index])
    subject = np.full(n, -1, dtype=np.intp)
    placed: ResidualPart | None = None
    if rows.of_fit:
        placed = part
    elif asked.all_told or asked.interval == "prediction":
        placed = placed_anywhere(part, asked.data, n, "data", subjects=asked.all_told)
    if asked.all_told and not rows.of_fit and not names.alone:
        assert placed is not None
        labels = _subject_labels(placed)
        subject = names.located(names.subject, labels)
        if asked.new_levels == "error":
            refuse_unseen(model, np.unique(labels[subject < 0]).tolist(), part.subject.name)
    weights = model.weights if rows.of_fit and asked.weights is None else asked.weights
    root = np.ones(n) if weights is None else np.sqrt(weights)
    Z = np.zeros((n, model.structure.q)) if rows.Z is None else rows.Z
    x = conditioned_x(rows.X)
    return Targets(x, Z, levels, subject, placed, root)
