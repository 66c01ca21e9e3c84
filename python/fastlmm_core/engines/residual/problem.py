"""A design with structured residuals, conditioned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...covariance.residual.catalogue import kind_of
from ...covariance.residual.markov import Chain
from ...covariance.residual.structure import Rows as StartRows
from ...design.design import Design
from ...design.grouping import Grouping
from ...design.independence import cluster_labels
from ...design.residual import ResidualPart
from ...errors import LMMError
from ...problem.columns import (
    condition_x,
    condition_y,
    condition_z,
    factor_structure,
    fixed_fields,
    refuse_non_finite,
    scaled_z,
)
from ...support.types import Array
from ..conditioned import ConditionedProblem
from ..protocol import Engine, Problem
from .clusters import ClusterCriterion, Clusters, clusters_of
from .patterns import Patterns, visit_patterns
from .series import SeriesCriterion, chains_of
from .visits import VisitCriterion

if TYPE_CHECKING:
    from .criterion import StructuredCriterion

__all__ = ["ResidualProblem", "condition_residual", "residual_problem"]


MANY_VISITS = 40
"""Visits above which the curvature in all covariances of two of them is larger than that along the parameters."""

SPANNED = 1e-9
"""Share of a row that X leaves below which it takes the row."""

SIZE = 2.0
"""Standard deviation of a random effect at the start, in what a level tells of it."""

TINY = 1e-30
"""Least mean square of the residuals of a stratum, in those of y."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ResidualProblem(ConditionedProblem):
    """A conditioned problem with structured residuals and the way back to the caller's units.

    Attributes
    ----------
    residual : ResidualPart
    xy : (n, r + 1) array
        [X_o y_o], weighted.
    Z : (n, q) array
        Z_o, weighted.
    codes : tuple of (n,) arrays
        Level of each row in each grouping factor of the random effects.
    n_levels : tuple of int
    spans : tuple of slice
        Columns of Z of each factor.
    labels : (n,) array
        Independent cluster of each row.
    given : bool
        Whether the parameters are: then n is added to y'V^-1y, so that r^2 is positive whatever y is.
    """

    residual: ResidualPart
    xy: Array
    Z: Array
    codes: tuple[NDArray[np.intp], ...]
    n_levels: tuple[int, ...]
    spans: tuple[slice, ...]
    labels: NDArray[np.intp]
    given: bool = False

    @property
    def levels(self) -> Array:
        """Number of levels for each random effect (q,)."""
        return np.repeat(np.array(self.n_levels, dtype=float), [span.stop - span.start for span in self.spans])

    @cached_property
    def patterns(self) -> Patterns:
        """Subjects by their pattern of visits."""
        return visit_patterns(self.residual, self.xy)

    @cached_property
    def clusters(self) -> Clusters:
        """Rows by independent cluster and subject."""
        return clusters_of(self.residual, self.labels, list(self.codes))

    @cached_property
    def by_pattern(self) -> bool:
        """Whether sums over patterns of visits serve: there are no random effects, and not too many visits."""
        part = self.residual
        if self.structure.q or not part.at_visits:
            return False
        positions = part.strata[0].structure.positions or 0
        return positions <= MANY_VISITS or len(np.unique(part.where)) <= MANY_VISITS

    @cached_property
    def chains(self) -> list[Chain] | None:
        """The residuals as Markov chains, where subjects are the only levels of random effects; None elsewhere."""
        subject = np.asarray(self.residual.subject.codes)
        sizes = np.bincount(subject)
        if len(self.codes) > 1:
            return None
        for code in self.codes:
            level = np.empty(len(sizes), dtype=np.intp)
            level[subject] = code
            if len(sizes) != self.n_levels[0] or not np.array_equal(level[subject], code):
                return None
        return chains_of(self.residual)

    def criterion(self, columns: Array | None = None) -> StructuredCriterion:
        """The criterion of the conditioned problem.

        Parameters
        ----------
        columns : (rank + 1, k) array, optional
            Take [X y] columns for [X y]: for coefficients that are fixed or constrained.
        """
        made = self._criterion(columns)
        made.alone = float(self.n) if self.given else 0.0
        return made

    def _criterion(self, columns: Array | None) -> StructuredCriterion:
        if not self.by_pattern:
            xy = self.xy if columns is None else self.xy @ columns

            def in_full() -> ClusterCriterion:
                return ClusterCriterion(self.clusters, xy, self.Z, self.structure, list(self.spans), self.residual)

            if self.chains is None:
                return in_full()
            return SeriesCriterion(self.chains, xy, self.Z, self.structure, list(self.spans), self.residual, in_full)
        patterns = self.patterns if columns is None else self.patterns.of_columns(columns)
        return VisitCriterion(patterns, self.n, self.residual)

    def about(self, phi: Array) -> VisitCriterion | None:
        """The criterion with `us` in coordinates about phi, None where there are none; see `ResidualPart.about`."""
        if not self.by_pattern or self.given:
            return None
        if any(
            len(p) != own.structure.positions for p, own in zip(self.patterns.places, self.residual.strata, strict=True)
        ):
            return None
        part = self.residual.about(phi)
        return None if part is None else VisitCriterion(self.patterns, self.n, part)

    def start(self, criterion: Engine) -> Array:
        """Phi from the moments of the residuals of y on X; random effects of the size that a level tells of them."""
        theta = self.structure.theta(np.diag(np.sqrt(self.levels / self.n) * SIZE)) if self.structure.q else np.zeros(0)
        return np.concatenate([theta, self._phi()])

    def _residuals(self) -> Array:
        """Residuals of y on X; of Markov chains also on Z, subject by subject, as they tell all of their effects."""
        rest = self.xy[:, -1]
        if not self.structure.q or self.by_pattern or self.chains is None:
            return rest
        order = np.argsort(self.codes[0], kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(self.codes[0]))[:-1])
        Z, y = self.Z[order], rest[order]
        gram = np.add.reduceat(Z[:, :, None] * Z[:, None, :], starts)
        # where the rows of a subject do not tell all of its effects, least squares with hardly any of them
        gram += SPANNED * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(Z.shape[1])
        effects = np.linalg.solve(gram, np.add.reduceat(Z * y[:, None], starts)[..., None])
        out = rest.copy()
        out[order] = y - np.einsum("ij,ij->i", Z, effects[self.codes[0][order], :, 0])
        return out

    def _phi(self) -> Array:
        part = self.residual
        order = part.sorted_rows
        codes = np.asarray(part.subject.codes)[order]
        rest, where, stratum = self._residuals()[order], part.where[order], part.stratum[order]
        phi = np.empty(part.n_parameters)
        for g, own in enumerate(part.strata):
            mine = stratum == g if len(part.strata) > 1 else slice(None)
            inner = own.structure.start(StartRows(rest[mine], where[mine], codes[mine]))
            if own.scaled:
                phi[own.start] = 0.0
            phi[own.start + own.scaled : own.stop] = inner
        if len(part.strata) == 1:
            return phi
        rest, variances = self.xy[:, -1], part.variances(phi)
        squares = np.bincount(part.stratum, rest * rest / variances) / np.bincount(part.stratum)
        for own, square in zip(part.strata, squares, strict=True):
            if own.scaled:
                phi[own.start] = log(max(square, TINY) / max(squares[0], TINY))
        return phi


def residual_problem(problem: Problem) -> ResidualProblem:
    """The problem, which must be one of structured residuals."""
    if not isinstance(problem, ResidualProblem):
        raise TypeError(f"a problem of structured residuals is needed, not {type(problem).__name__}")
    return problem


def condition_residual(
    design: Design, y: Array, offset: Array | None, given: bool = False
) -> tuple[ResidualProblem, tuple[Grouping, ...]]:
    """Condition a design with structured residuals.

    Parameters
    ----------
    design : Design
    y : (n,) array
    offset : (n,) array or None
    given : bool
        Whether the parameters are, so that any response will do.

    Returns
    -------
    ResidualProblem
    tuple of Grouping
        The grouping factors, counted; the subjects where there are no random effects.

    Raises
    ------
    LMMError
        For values that are not finite, or a response that is constant or reproduced by X.
    """
    part = design.residual
    assert part is not None
    X, weights = design.exog, design.weights
    refuse_non_finite(y, X, design.exog_re, weights, offset)
    x, x_o = condition_x(X, weights)
    groupings = tuple(read.count() for read in design.random.codes)
    q = design.structure.q
    Z, z_map = np.zeros((len(y), q)), np.zeros((q, q))
    for span, grouping in zip(design.random.spans, groupings, strict=True):
        if span.stop > span.start:
            given_columns = np.asarray(design.random.columns_of(span), dtype=float)
            if not given:
                _refuse_contained(part, grouping, given_columns, design.exog_re_names[span])
            own = factor_structure(design.structure, span.start, span.stop - span.start)
            conditioned = scaled_z if given else condition_z
            Z[:, span], z_map[span, span] = conditioned(given_columns, weights, own)
    if not given:
        _refuse_constant_visits(part, y if offset is None else y - offset, x_o)
    rest, scale, coefficients = condition_y(y, x, x_o, weights, offset, given)
    problem = ResidualProblem(
        n=len(y),
        m=part.subject.n_slots,
        structure=design.structure,
        residual=part,
        xy=np.column_stack([x_o, rest]),
        scale=scale,
        Z=Z,
        codes=tuple(g.index for g in groupings) if q else (),
        n_levels=tuple(g.m for g in groupings),
        spans=design.random.spans,
        labels=cluster_labels(replace(design, groupings=groupings)),
        z_map=z_map,
        log_constant=0.0 if weights is None else -float(np.sum(np.log(weights))),
        given=given,
        **fixed_fields(X.shape[1], x, coefficients),
    )
    return problem, groupings


def _refuse_constant_visits(part: ResidualPart, y: Array, X: Array) -> None:
    """Refuse visits whose variance cannot be told: all responses are equal, or the fixed effects take them all.

    Parameters
    ----------
    part : ResidualPart
    y : (n,) array
        Less the offset.
    X : (n, r) array
        X_o, weighted; orthonormal.
    """
    kind = kind_of(part.name)
    if not kind.own_variances or not part.at_visits:
        return
    free = 1.0 - np.einsum("ij,ij->i", X, X)
    visit = part.where if len(part.strata) == 1 else part.stratum * (int(part.where.max()) + 1) + part.where
    count = np.bincount(visit)
    some = np.empty(len(count))
    some[visit] = y
    alike = np.bincount(visit, y != some[visit]) == 0
    alike &= count >= (1 if kind.reproduces else 2)
    spanned = free.min() < SPANNED and ((np.bincount(visit, free >= SPANNED) == 0) & (count > 0)).any()
    if alike.any() or spanned:
        _refuse_first_visit(part, y, free)


def _refuse_first_visit(part: ResidualPart, y: Array, free: Array) -> None:
    """Name the first visit that is refused, and why.

    Parameters
    ----------
    part : ResidualPart
    y : (n,) array
    free : (n,) array
        Share of each row that X leaves.
    """
    for g, own in enumerate(part.strata):
        mine = part.stratum == g
        for place in np.unique(part.where[mine]).tolist():
            rows = np.flatnonzero(mine & (part.where == place))
            visit = f"{part.time} {part.labels[place]}" + (f", {part.by} {own.label}" if own.label else "")
            if len(rows) > 1 and (y[rows] == y[rows[0]]).all():
                raise LMMError(
                    f"residual={part.term!r}: all responses at {visit} are equal, so that their variance is zero; "
                    "leave the visit out, or take a structure with one variance for all visits"
                )
            if len(rows) == 1 and kind_of(part.name).reproduces:
                raise LMMError(
                    f"residual={part.term!r}: there is one row at {visit}, and the covariances with the other visits "
                    "reproduce it; leave the visit out, or take a structure with fewer parameters"
                )
            if (free[rows] < SPANNED).all():
                raise LMMError(
                    f"residual={part.term!r}: the fixed effects reproduce the response at {visit} "
                    f"({len(rows)} row{'s' * (len(rows) > 1)}), so that its variance cannot be estimated; leave the "
                    "visit out, or take a structure with one variance for all visits"
                )


def _refuse_contained(part: ResidualPart, grouping: Grouping, Z: Array, names: tuple[str, ...]) -> None:
    """Refuse random effects of subjects that their residual structure contains.

    An unstructured covariance contains any effects that depend on the visit only; compound symmetry, and a Toeplitz
    matrix, an intercept.
    """
    contains = kind_of(part.name).contains
    subject = np.asarray(part.subject.codes)
    if not contains or grouping.m != part.subject.n_slots or not part.at_visits:
        return
    partner = np.full(grouping.m, -1, dtype=np.intp)
    partner[subject] = grouping.index
    if not np.array_equal(partner[subject], grouping.index):
        return
    at = part.where if contains == "visits" else np.zeros(len(subject), dtype=np.intp)
    first = np.zeros(int(at.max()) + 1, dtype=np.intp)
    first[at[::-1]] = np.arange(len(at))[::-1]
    contained = (Z[first[at]] == Z).all(axis=0)
    if contained.any():
        listed = " and ".join(repr(name) for name, inside in zip(names, contained, strict=True) if inside)
        raise LMMError(
            f"residual={part.term!r} contains the random effect{'s' * (int(contained.sum()) > 1)} {listed} of "
            f"{grouping.name!r}: variances of both cannot be told apart; leave the random effect out, or take a "
            "structure with fewer parameters, such as ar1"
        )
