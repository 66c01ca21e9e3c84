"""Influence of groups and observations: what the estimates become without them.

The refits are exact (see `estimation.deletion`).  Measures follow Loy and Hofmann
2014 (J. Stat. Softw. 56(5), sec. 3), Belsley, Kuh and Welsch 1980 (Regression Diagnostics, ch. 2), and Demidenko and
Stukel 2005 (Statist. Med. 24, 893-909), with the estimates of the deleted fit in the place of one-step approximations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..covariance.elements import element_names
from ..design.grouping import group_codes
from ..design.independence import cluster_labels
from ..design.streamed import refuse_rows
from ..engines.one_factor.problem import one_factor
from ..errors import LMMError
from ..estimation.deletion.groups import Deletions, delete, delete_by_sums
from ..estimation.deletion.rows import refit_each, refit_without, rows_of_units
from ..estimation.statements import residual_names
from ..support.arguments import checked
from ..support.display import Cells, Shown, text_of
from ..support.types import Array

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..design.streamed import StreamedDesign
    from ..estimation.fit import Fit

__all__ = ["Influence", "influence"]


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Influence(Shown):
    """The fits without each group, or without each observation, one per line (d lines).

    A line is NaN where nothing can be fitted without the unit; coefficients that are then not estimable are NaN too.
    `notes` says why.

    Attributes
    ----------
    result : LMMResult
        The fit of all data.
    by : str
        "group", "observation" or the name of the grouping factor, or of the labels that were given.
    labels : (d,) array
        Labels of the groups, or of the observations: those of pandas' index, positions in any other table or array.
    params : (d, p) array
        Fixed effects.
    theta : (d, k) array
        Relative covariance parameters.
    sigma2 : (d,) array
        Residual variance.
    criterion : (d,) array
        REML criterion or deviance of the data that are left.
    gradient_norm : (d,) array
        Square root of twice the decrease of the criterion still to be had.
    converged, singular : (d,) bool arrays
    nobs : (d,) int array
        Observations left.
    residual : (d, k) array or None
        Parameters of structured residuals, as in `residual_parameters()`.
    deletions : Deletions
        The fits as they were found, in conditioned units.
    notes : dict
        Label (position, where labels of rows repeat) to what is unusual about the fit without it.
    """

    result: Fit
    by: str
    labels: NDArray[Any]
    params: Array
    theta: Array
    sigma2: Array
    criterion: Array
    gradient_norm: Array
    converged: NDArray[np.bool_]
    singular: NDArray[np.bool_]
    nobs: NDArray[np.int64]
    residual: Array | None
    notes: dict[Any, str]
    deletions: Deletions = field(repr=False)
    relative_factor: Array = field(repr=False)
    _grouping: Grouping | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    # ---- the fits ------------------------------------------------------------------------------

    @cached_property
    def bse(self) -> Array:
        """Standard errors of the fixed effects (d, p)."""
        return np.asarray(
            np.sqrt(self.sigma2[:, None] * np.einsum("dij,dij->dj", self.deletions.half, self.deletions.half))
        )

    def cov_params(self) -> Array:
        """Covariance matrices of the fixed effects (d, p, p)."""
        return np.asarray(self.sigma2[:, None, None] * (self.deletions.half.transpose(0, 2, 1) @ self.deletions.half))

    @cached_property
    def covariance(self) -> Array:
        """Covariance matrices of all random effects (d, q, q)."""
        return np.asarray(self.sigma2[:, None, None] * (self.relative_factor @ self.relative_factor.transpose(0, 2, 1)))

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrices of the random effects by term (d, q, q)."""
        model = self.result.model
        return {
            name: self.covariance[:, block.start : block.stop, block.start : block.stop]
            for name, block in zip(model.term_names, model.structure.blocks, strict=True)
        }

    # ---- fixed effects -------------------------------------------------------------------------

    @cached_property
    def _kept(self) -> NDArray[np.intp]:
        return self.result.model.problem.kept

    @cached_property
    def _root(self) -> Array:
        """Lower Cholesky factor of the covariance of the fixed effects of the full data (rank, rank)."""
        return np.asarray(np.linalg.cholesky(self.result.cov[np.ix_(self._kept, self._kept)]), dtype=np.float64)

    @cached_property
    def _change(self) -> Array:
        """Estimate less the one without the unit (d, p)."""
        return np.asarray(self.result.beta - self.params)

    @cached_property
    def _relative(self) -> Array:
        """L^-1 cov_i L^-T for the covariance L L' of the full data (d, rank, rank): no units left."""
        cov = self.cov_params()[:, self._kept[:, None], self._kept]
        half = np.linalg.solve(self._root, cov)
        return np.asarray(np.linalg.solve(self._root, half.transpose(0, 2, 1)))

    @cached_property
    def cooks_distance(self) -> Array:
        """Cook's distance of the fixed effects (d,): (b - b_i)' cov(b)^-1 (b - b_i) / rank(X)."""
        scaled = np.linalg.solve(self._root, self._change[:, self._kept].T)
        return np.asarray(np.sum(scaled**2, axis=0) / max(len(self._kept), 1))

    @cached_property
    def mdffits(self) -> Array:
        """Multivariate DFFITS (d,): as Cook's distance, with the covariance matrix of the fit without the unit."""
        scaled = np.linalg.solve(self._root, self._change[:, self._kept].T).T
        out = np.full(len(self), np.nan)
        fine = np.isfinite(scaled).all(axis=1) & np.isfinite(self._relative).all(axis=(1, 2))
        solved = np.linalg.solve(self._relative[fine], scaled[fine, :, None])[:, :, 0]
        out[fine] = np.sum(scaled[fine] * solved, axis=1) / max(len(self._kept), 1)
        return out

    @cached_property
    def dfbetas(self) -> Array:
        """Change of each coefficient in standard errors of the fit without the unit (d, p): (b - b_i) / se_i."""
        return np.asarray(self._change / self.bse)

    @cached_property
    def covratio(self) -> Array:
        """det(cov_i) / det(cov) (d,): below 1 where the unit costs precision."""
        out = np.full(len(self), np.nan)
        fine = np.isfinite(self._relative).all(axis=(1, 2))
        out[fine] = np.linalg.det(self._relative[fine])
        return out

    @cached_property
    def covtrace(self) -> Array:
        """|tr(cov^-1 cov_i) - rank(X)| (d,)."""
        return np.asarray(np.abs(np.trace(self._relative, axis1=1, axis2=2) - len(self._kept)))

    # ---- variance components -------------------------------------------------------------------

    @cached_property
    def rvc_names(self) -> tuple[str, ...]:
        """Names of the columns of `rvc`."""
        model = self.result.model
        names = element_names(model.random.elements, "var")
        return names if model.residual is None else (*names[:-1], *residual_names(model.residual))

    @cached_property
    def rvc(self) -> Array:
        """Relative change of the variance components (d, c): estimate without the unit / estimate - 1.

        Variances and covariances of the random effects, then the residual variance, or the parameters of structured
        residuals; NaN where an estimate is zero.
        """
        model = self.result.model
        rows, columns = model.structure.positions
        rest, own_rest = np.array([self.result.sigma2]), self.sigma2[:, None]
        if model.residual is not None and self.residual is not None:
            rest, own_rest = model.residual.natural(self.result.phi, self.result.sigma2), self.residual
        base = np.append(self.result.covariance[rows, columns], rest)
        own = np.column_stack([self.covariance[:, rows, columns], own_rest])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(base != 0.0, own / base - 1.0, np.nan)

    # ---- random effects and fitted values -------------------------------------------------------

    def without(self, label: Any) -> Any:
        """The fit without a unit, with all that a result can do: its random effects, tests, predictions.

        Parameters
        ----------
        label : label
            One of `labels`.

        Returns
        -------
        LMMResult
            Of the rows that are left.

        Raises
        ------
        LMMError
            For another label, or where nothing can be fitted without the unit.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.influence().without("335").params.round(2).to_dict()
        {'Intercept': 250.72, 'Days': 11.25}
        """
        found = np.flatnonzero(self.labels == label)
        if len(found) != 1:
            what = "no unit" if not len(found) else "a label of several units"
            raise LMMError(f"label={label!r} is {what}; the first of them is {self.labels.tolist()[0]!r}")
        return refit_without(self.result, self._units()[int(found[0])])

    def _units(self) -> list[NDArray[np.intp]]:
        """Rows of each unit."""
        if self._grouping is None:
            return list(np.arange(self.result.nobs)[:, None])
        return rows_of_units(self.result, self._grouping)

    @cached_property
    def _effects(self) -> tuple[Array, ...]:
        from .deleted_effects import deleted_effects

        return deleted_effects(self.result, self.deletions, self._units())

    @property
    def random_effects(self) -> Any:
        """BLUPs of all groups by each fit (d, m, q), NaN for groups without rows; a dict by factor for several."""
        found = self._effects
        return found[0] if len(found) == 1 else dict(zip(self.result.n_groups, found, strict=True))

    @cached_property
    def fittedvalues(self) -> Array:
        """Conditional means of all rows used by each fit (d, nobs).

        Those of the rows that were left out are predictions: with the random effects of groups of which rows are left,
        as in leave-one-out cross-validation, and without those of groups of which none are.
        """
        from .deleted_effects import deleted_fitted

        return deleted_fitted(self.result, self.deletions, self._units(), self._effects)

    # ---- leverage ------------------------------------------------------------------------------

    @cached_property
    def leverage(self) -> dict[str, Array]:
        """Leverage of each unit in the fit of all data (see `leverage.leverage`); of groups the mean of their rows.

        Returns
        -------
        dict
            ``overall``, ``fixed``, ``random``: arrays (d,).

        Raises
        ------
        LMMError
            Where the residuals have a structure.
        """
        self.result.model.needs_independent_residuals("leverage")
        from .leverage import leverage_parts, row_variances

        rows = leverage_parts(row_variances(self.result))
        if self._grouping is None:
            return rows
        index = self._grouping.index
        counts = np.bincount(index)
        return {name: np.bincount(index, values) / counts for name, values in rows.items()}

    # ---- presentation --------------------------------------------------------------------------

    def to_frame(self) -> Any:
        """All measures, one line per unit, in the library of the model's data (a dict of arrays for array models).

        Leverage only where rows are held.

        Of observations a frame of pandas has the index; other libraries have a column ``row``, the positions.
        """
        model = self.result.model
        rows = model.design.caller_rows if self._grouping is None else None
        columns: dict[str, Any] = {}
        if self._grouping is not None:
            columns[self._grouping.name] = self.labels
        elif model.library != "pandas":
            columns["row"] = self.labels
        columns |= {"nobs": self.nobs, "cooks_distance": self.cooks_distance, "mdffits": self.mdffits}
        columns |= {"covratio": self.covratio, "covtrace": self.covtrace}
        if model.residual is None and not model.streamed:
            columns |= {f"leverage_{name}": values for name, values in self.leverage.items()}
        columns |= {f"dfbetas_{name}": self.dfbetas[:, j] for j, name in enumerate(model.exog_names)}
        columns |= {f"rvc_{name}": self.rvc[:, j] for j, name in enumerate(self.rvc_names)}
        columns |= {"criterion": self.criterion, "singular": self.singular, "converged": self.converged}
        return model.table(columns) if rows is None else rows.table(columns)

    def most_influential(self, n: int = 5) -> NDArray[np.intp]:
        """Positions of the units of largest Cook's distance, largest first; units without a fit come last."""
        order = np.argsort(-np.nan_to_num(self.cooks_distance, nan=-1.0), kind="stable")
        return np.asarray(order[: max(int(n), 0)], dtype=np.intp)

    def summary(self, n: int = 5) -> str:
        """The most influential units as text.

        Parameters
        ----------
        n : int
            Number of units listed.
        """
        return text_of(self._most(n))

    def _shown(self) -> Iterator[str | Cells]:
        return self._most(5)

    def _most(self, n: int) -> Iterator[str | Cells]:
        """The `n` most influential units."""
        names = self.result.model.exog_names
        rows = [
            [
                str(self.labels[i]), f"{self.cooks_distance[i]:.4g}", f"{self.mdffits[i]:.4g}",
                f"{self.covratio[i]:.4g}", _largest(self.dfbetas[i], names), _largest(self.rvc[i], self.rvc_names),
            ]
            for i in self.most_influential(n)
        ]  # fmt: skip
        what = "observation" if self._grouping is None else self._grouping.name
        yield f"Influence of each {what}: {len(self)} exact refits"
        header = ["unit", "Cook's D", "MDFFITS", "COVRATIO", "largest DFBETAS", "largest rel. variance change"]
        yield Cells(header, rows)
        open_ = int((~self.converged).sum())
        yield f"{int(self.singular.sum())} singular, {open_} not certified or without a fit"
        yield from (f"{label}: {note}" for label, note in list(self.notes.items())[: max(n, 0)])
        if len(self.notes) > n:
            yield f"... and {len(self.notes) - n} more notes"


def _largest(values: Array, names: tuple[str, ...]) -> str:
    if not np.isfinite(values).any():
        return "-"
    j = int(np.nanargmax(np.abs(np.where(np.isfinite(values), values, np.nan))))
    return f"{values[j]:+.3g} ({names[j]})"


def _unit(result: Fit, by: str) -> Grouping | None:
    """The grouping factor whose levels are deleted, None for observations."""
    groupings = {f.grouping.name: f.grouping for f in result.model.factors}
    if result.model.residual is not None:
        subject = result.model.residual.subject.count()
        groupings = {subject.name: subject} | groupings
    if by in groupings:
        return groupings[by]
    named = " or ".join(repr(name) for name in groupings)
    if by == "observation":
        return None
    if by != "group":
        raise LMMError(f"by={by!r} is unknown: use 'group' or 'observation', or the grouping factor {named}")
    coarsest = list(groupings.values())[-1]
    if len(groupings) > 1 and int(cluster_labels(result.model.design).max()) + 1 < len(coarsest.labels):
        raise LMMError(f"the grouping factors are crossed: say which levels are deleted, by={named}")
    return coarsest


def _given(result: Fit, by: Any) -> Grouping:
    """Units that are given as the label of each row."""
    values = result.model.design.caller_rows.values(by, "by")
    if np.ndim(values) != 1:
        raise LMMError("by must be 'group', 'observation', a grouping factor, or the label of each row's unit")
    grouping = group_codes(values, str(getattr(by, "name", None) or "unit")).count()
    if grouping.m < 2:
        raise LMMError(f"by has one label, {grouping.labels.tolist()[0]!r}: nothing is left without its rows")
    return grouping


def _without_rows(result: Fit, by: Any, source: Any) -> tuple[Grouping, Deletions]:
    """The grouping factor of a model whose rows are not held, and the deletions of its groups."""
    model = result.model
    if len(model.factors) > 1 or model.one_by_one or one_factor(model.problem).crowded:
        refuse_rows("the deletion of groups, each of which refits the rows of this model,")
    grouping = None if not isinstance(by, str) else _unit(result, by)
    if grouping is None:
        refuse_rows("the deletion of single rows, or of rows by labels of their own,")
    if source is None:
        raise LMMError(
            "influence() needs products of the columns of X and y within each group, which the sums of rows that are "
            "not held do not have; give the rows once more, result.influence(source=...), as anything that scan() takes"
        )
    from ..streams.deletion import sums_within_groups
    from ..streams.source import scan

    design = cast("StreamedDesign", model.design)
    return grouping, delete_by_sums(result, *sums_within_groups(design, one_factor(model.problem), scan(source)))


def _refits(result: Fit, by: Any, grouping: Grouping | None) -> Deletions:
    """The deletions of a model that holds its rows."""
    model = result.model
    if not isinstance(by, str) or model.one_by_one or len(model.factors) > 1 or one_factor(model.problem).crowded:
        return refit_each(result, grouping)
    return delete(result, "observation" if grouping is None else "group")


def influence(result: Fit, by: str | ArrayLike = "group", source: Any = None) -> Influence:
    """Refit without each group or each observation, exactly, and measure the changes.

    Parameters
    ----------
    result : LMMResult
    source : optional
        The rows once more, for a model of one grouping factor that does not hold them: anything that `scan` takes.
    by : str or (n,) array
        "group", "observation" or the name of a grouping factor, or of the subjects of structured residuals.  Of
        several factors that are nested "group" is the coarsest one; where they are crossed it is not defined.  Or the
        label of each row: rows with the same one are left out together.

    Returns
    -------
    Influence

    Raises
    ------
    LMMError
        For another `by`; for several grouping factors and more observations than are refitted one by one.

    Notes
    -----
    With one grouping factor a deletion costs microseconds; with several, with structured residuals, or where there are
    hardly more rows than random effects, it is a fit, started at the estimates of all rows.
    """
    model = result.model
    chosen = not isinstance(by, str)
    grouping: Grouping | None
    if source is not None and not model.streamed:
        raise LMMError("source is for a model whose rows are not held; leave it out")
    if model.streamed:
        grouping, found = _without_rows(result, by, source)
    else:
        grouping = _given(result, by) if chosen else _unit(result, str(by))
        found = _refits(result, by, grouping)
    if grouping is not None:
        keys = labels = grouping.labels
    else:
        rows = model.design.caller_rows
        labels = rows.labels
        keys = labels if rows.index is None or rows.used_index.is_unique else rows.positions
    return Influence(
        result=result,
        by=str(by) if grouping is None or not chosen else grouping.name,
        labels=labels,
        params=found.params,
        theta=found.factor[:, model.structure.positions[0], model.structure.positions[1]],
        sigma2=found.sigma2,
        criterion=found.criterion,
        gradient_norm=found.gradient_norm,
        converged=found.converged,
        singular=found.singular,
        nobs=found.n,
        residual=found.residual,
        notes={keys[i]: note for i, note in sorted(found.notes.items())},
        deletions=found,
        relative_factor=found.factor,
        _grouping=grouping,
    )
