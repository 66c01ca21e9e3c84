"""Covariances over visits near to singular: what has no variance left, where the likelihood has no maximum.

Of `us` the search goes on in coordinates about the point reached.

Let the variance s^2 of a combination c'y of visits run to zero.  N subjects have all of its visits and X those
combinations c'X_i, of rank r.  -2 log(REML) changes by 2 (N - r) log(s) plus the sum of squares of what X leaves of the
c'y_i, over s^2 (ML: 2 N log(s)).  With N > r and combinations that X reproduces it falls without bound: the likelihood
has no maximum.  With N = r it has a limit, which is as low as it gets on a boundary.  Of other structures several
combinations lose their variance together, where one parameter runs into its limit; the N - r are added up.

Random effects that vary reproduce what they reach of the c'y_i: N loses the rank of the c'Z_i, by levels, and r is what
X adds to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..covariance.residual.relative import Relative
from ..engines.residual.criterion import StructuredCriterion, structured_engine
from ..engines.residual.visits import VisitCriterion
from ..support.types import Array, Index
from .certificate import decrement_of
from .methods import Ended, run_once
from .optimum import CERTIFIED

if TYPE_CHECKING:
    from ..design.residual import ResidualPart
    from ..engines.protocol import Engine
    from ..engines.residual.problem import ResidualProblem

__all__ = ["followed", "without_maximum"]


ROUND, ROUNDS = 30, 20
"""Iterations between changes of coordinates, and how many there are."""

VANISHED = 1e-4
"""Standard deviation of a combination of standardised visits below which it is asked whether it runs to zero."""

SMALL, GAP = 0.03, 0.1
"""The same of structures of which several combinations vanish; and the share of the next variance that theirs have."""

FALLS = 0.9
"""Share of the slope 2 (N - r) in log(s) from which nothing but N - r is left of it."""

LARGEST = 30_000_000
"""Numbers in the combinations of columns of Z, by levels, up to which their rank is asked for."""

DEPENDENT = 1e-8
"""Singular value of the c'X_i, relative to the largest, that adds nothing to their rank."""


class Followed(NamedTuple):
    """Where a search in coordinates about its own points ended: phi, how, decrement and lowest curvature there.

    `unbounded` says what has no variance left, where the likelihood has no maximum.
    """

    phi: Array
    ended: Ended
    decrement: float
    lowest: float
    unbounded: str


def followed(engine: Engine, problem: ResidualProblem, phi: Array, options: dict[str, Any]) -> Followed | None:
    """Go on in coordinates of `us` about the point reached, taken anew after each round.

    Parameters
    ----------
    engine : Engine
        Its evaluations are counted.
    problem : ResidualProblem
    phi : (k,) array
        Where the search stopped.
    options : dict
        Of Newton's method.

    Returns
    -------
    Followed or None
        None where the structure has no such coordinates.
    """
    found: Followed | None = None
    for _ in range(ROUNDS):
        local = problem.about(phi)
        if local is None:
            break
        local.reml = engine.reml
        ended = run_once(local, _origin(local.part, phi), "newton", {**options, "maxiter": ROUND})
        _, gradient, hessian = local.evaluate(ended.theta, 2)
        engine.n_evaluations += local.n_evaluations
        if gradient is None or hessian is None:
            break
        phi = _back(local.part, ended.theta)
        decrement, lowest = decrement_of(gradient, hessian)
        done = decrement <= CERTIFIED and ended.success
        found = Followed(phi, ended, decrement, lowest, "" if done else without_maximum(engine, problem, phi))
        if done or found.unbounded:
            break
    return found


def without_maximum(engine: Engine, problem: ResidualProblem, x: Array) -> str:
    """What has no variance left where the likelihood has no maximum; empty elsewhere.

    Parameters
    ----------
    engine : Engine
    problem : ResidualProblem
    x : (k,) array
        (theta, phi).
    """
    criterion, part = structured_engine(engine), problem.residual
    if not part.at_visits or not np.isfinite(criterion.evaluate(x, 1)[0]):
        return ""
    if part.name != "us" or not isinstance(criterion, VisitCriterion):
        return _of_structure(criterion, problem, x)
    for g, root in enumerate(criterion.roots):
        length = np.sqrt(np.einsum("ij,ij->i", root, root))
        left, sizes, right = np.linalg.svd(root / length[:, None])
        small = np.flatnonzero(sizes < VANISHED)[::-1]
        slope = 2.0 * np.einsum("ia,ab,ib->i", right[small], criterion.slopes[g], right[small])
        for count in range(1, len(small) + 1):
            own = small[:count]
            told = _told(problem, None, criterion.reml, g, left[:, own], length, 10.0 * float(sizes[own].max()))
            if told.gain > 0 and slope[:count].sum() > FALLS * 2.0 * told.gain:
                return _named(part, g, told, count)
    return ""


def _of_structure(criterion: StructuredCriterion, problem: ResidualProblem, x: Array) -> str:
    """The same of any structure: what vanishes where the criterion falls as N - r says that it does.

    Parameters
    ----------
    criterion : StructuredCriterion
        After an evaluation of order 1.
    problem : ResidualProblem
    x : (k,) array
        (theta, phi).
    """
    part, structure = problem.residual, problem.structure
    phi = x[structure.n_parameters :]
    factor = structure.factor(x[: structure.n_parameters]) if structure.q else None
    gradient = criterion.first_directions()
    gradient = gradient[len(gradient) - len(phi) :]
    rest = problem.xy[:, -1]
    for g, own in enumerate(part.strata):
        mine = part.stratum == g
        places = np.unique(part.where[mine])
        jacobian = own.jacobian(phi, places)
        far = own.start + int(np.argmax(np.abs(phi[own.start : own.stop])))
        at = np.searchsorted(places, part.where[mine])
        squares = np.bincount(at, rest[mine] ** 2, len(places)) / np.bincount(at, minlength=len(places))
        # in the standard deviations of the rows, of which a vanishing variance is a small share
        length = np.sqrt(np.maximum(squares, np.finfo(float).tiny) * criterion.nu / criterion.r2)
        table = own.matrix(phi, places) / np.outer(length, length)
        values, vectors = np.linalg.eigh(table)
        turned = np.einsum("ia,kij,ja->ka", vectors, jacobian / np.outer(length, length), vectors)
        for count in range(int((values < SMALL**2).sum()), 0, -1):
            if not values[count - 1] < GAP * values[min(count, len(values) - 1)]:
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                shrinks = (turned[:, :count] / (2.0 * values[:count])).mean(axis=1)
                # along the parameter that has run away: the others keep the combination where it vanishes
                slope = gradient[far] / shrinks[far - own.start]
            told = _told(problem, factor, criterion.reml, g, vectors[:, :count], length, 10.0 * SMALL)
            if told.gain > 0 and slope > FALLS * 2.0 * told.gain:
                return _named(part, g, told, count)
    return ""


class _Told(NamedTuple):
    """What subjects tell of combinations: N - r, the visits of those that they have, and how many subjects do."""

    gain: int
    visits: list[int]
    subjects: int


def _told(
    problem: ResidualProblem, factor: Array | None, reml: bool, g: int, combinations: Array, length: Array, zero: float
) -> _Told:
    """What the subjects of a stratum tell of combinations of standardised visits whose variance vanishes.

    Parameters
    ----------
    problem : ResidualProblem
    factor : (q, q) array or None
        Lambda; None where there are no random effects.
    reml : bool
    g : int
        Stratum.
    combinations : (m, d) array
    length : (m,) array
        Standard deviations of the visits.
    zero : float
        Weight of a visit that counts for none.
    """
    part, xy = problem.residual, problem.xy[:, :-1]
    subjects, visits = 0, np.zeros(len(length), dtype=bool)
    rows: list[Array] = []
    for own, where, members in part.alike():
        if own is not part.strata[g]:
            continue
        outside = np.setdiff1d(np.arange(len(length)), where)
        _, sizes, turned = np.linalg.svd(combinations[outside], full_matrices=True)
        weights = combinations @ turned[int((sizes > zero).sum()) :].T
        if not weights.shape[1]:
            continue
        subjects += len(members)
        visits |= (np.abs(weights) > zero).any(axis=1)
        inner = weights[where] / length[where, None]
        if sum(len(block) for block in rows) + len(members) * inner.shape[1] > LARGEST // max(1, sum(problem.n_levels)):
            return _Told(0, [], 0)
        reached = np.zeros((len(members) * inner.shape[1], 0))
        if factor is not None:
            reached = _reached(problem, factor, members, inner)
        if reml:
            fixed = np.einsum("vd,ivk->idk", inner, xy[members]).reshape(len(reached), -1)
            reached = np.concatenate([reached, fixed], axis=1)
        rows.append(reached)
    gain, size = sum(len(block) for block in rows), np.abs(xy).max(initial=0.0) / length.min()
    if rows and rows[0].shape[1]:
        gain -= int((np.linalg.svd(np.concatenate(rows), compute_uv=False) > DEPENDENT * size).sum())
    return _Told(gain, np.flatnonzero(visits).tolist(), subjects)


def _reached(problem: ResidualProblem, factor: Array, members: Index, inner: Array) -> Array:
    """What the random effects reach of combinations of the rows of subjects: c'Z_i by levels.

    Parameters
    ----------
    problem : ResidualProblem
    factor : (q, q) array
        Lambda.
    members : (c, s) array
        Rows of subjects.
    inner : (s, d) array

    Returns
    -------
    (c d, all levels times effects) array
        Of the size of the columns of X.
    """
    count, d = len(members), inner.shape[1]
    blocks = [np.zeros((count * d, 0))]
    for codes, m, span in zip(problem.codes, problem.n_levels, problem.spans, strict=False):
        left, sizes, _ = np.linalg.svd(factor[span, span])
        Z = problem.Z[:, span] @ left[:, sizes > DEPENDENT * sizes.max(initial=1.0)]
        Z *= np.abs(problem.xy[:, :-1]).max(initial=1.0) / np.abs(Z).max(axis=0)
        block = np.zeros((count, d, m, Z.shape[1]))
        own = np.arange(count)
        for v, rows in enumerate(members.T):
            for j in range(d):
                block[own, j, codes[rows]] += inner[v, j] * Z[rows]
        blocks.append(block.reshape(count * d, -1))
    return np.concatenate(blocks, axis=1)


def _named(part: ResidualPart, g: int, told: _Told, count: int) -> str:
    own = part.strata[g]
    names = [part.labels[v] for v in told.visits]
    if len(names) == 1:
        return (
            f"the likelihood has no maximum: {part.time} {names[0]} has no variance left in the {told.subjects} "
            "subjects that have it; leave the visit out, or take a structure with one variance for all visits"
        )
    listed = f"{part.time} {', '.join(names[:-1])} and {names[-1]}" + (
        f" of {part.by} {own.label}" if own.label else ""
    )
    combined = f"a combination of {listed} has" if count == 1 else f"{count} combinations of {listed} have"
    have = f"the {told.subjects} subjects that have" if told.subjects > 1 else "the one subject that has"
    all_of = "all of them" if count == 1 else "enough of them"
    return (
        f"the likelihood has no maximum: {combined} no variance left in {have} {all_of}; leave one of these visits "
        "out, or take a structure with fewer parameters"
    )


def _origin(part: ResidualPart, phi: Array) -> Array:
    """Where the coordinates about phi are zero: only the scales of strata are kept."""
    out = np.zeros(len(phi))
    for own in part.strata:
        if own.scaled:
            out[own.start] = phi[own.start]
    return out


def _back(part: ResidualPart, psi: Array) -> Array:
    """Phi from coordinates about another point."""
    out = psi.copy()
    for own in part.strata:
        inner = own.structure
        assert isinstance(inner, Relative)
        root = inner.root(own.own(psi)[1], np.arange(inner.m))
        out[own.start + own.scaled : own.stop] = inner.of_factor(root)

    return out
