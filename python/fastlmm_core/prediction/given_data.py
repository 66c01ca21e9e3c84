"""The random effects of new rows given the data: which of their groups are known, and what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines.one_factor.problem import OneFactorProblem, one_factor
from ..engines.protocol import Problem
from ..errors import LMMError
from ..inference.wald import undetermined, why_undetermined
from ..support.blas_threads import quiet_product
from ..support.types import Array, Index
from ..tables.columns import first_rows
from .conditional import posterior_of
from .new_rows import NewRows, read_rows, refuse_unseen, some_of
from .one_factor import OneFactorEffects

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = [
    "Conditional", "conditioned_rows", "conditioned_x", "lost_columns", "observed_rows", "of_one_factor",
    "of_several_factors",
]  # fmt: skip


class Conditional(Protocol):
    """b given y."""

    def at(self, Z: list[Array], levels: list[Index]) -> tuple[Array, Array]:
        """z'M Z'[X_o, (y - X beta) / scale] (n, r + 1) and z'Mz (n,) for rows z in conditioned coordinates."""
        ...


def _unpack_raw(result: Fit, positions: Index) -> tuple[Array, Array]:
    """A (g, q, q) and Z'[X y_res] (g, q, p+1) of known groups in conditioned coordinates."""
    problem = one_factor(result.model.problem)
    q, k = problem.structure.q, problem.rank + 1
    lines = problem.raw[positions]
    lower = np.zeros((len(lines), q, q))
    rows, columns = np.tril_indices(q)
    lower[:, rows, columns] = lines[:, : len(rows)]
    lower[:, columns, rows] = lines[:, : len(rows)]
    cross = lines[:, len(rows) : len(rows) + q * k].reshape(-1, q, k)
    turn = problem.z_transform
    return turn.T @ lower @ turn, turn.T @ cross @ problem.xy_transform


def _observed_cross(result: Fit, rows: NewRows) -> tuple[dict[Any, int], Array, Array]:
    """The same for subjects given by a few observations."""
    problem = one_factor(result.model.problem)
    assert rows.Z is not None and rows.y is not None
    w = np.ones(len(rows.y)) if rows.weights is None else rows.weights
    z = _conditioned_z(problem, rows.Z)
    stated = result.stated is not None
    base = quiet_product(rows.X, np.nan_to_num(result.beta) if stated else problem.beta_base)
    base = base if rows.offset is None else base + rows.offset
    # stated coefficients are known of columns, too, that the rows of the design do not tell
    x = np.zeros((len(base), problem.rank)) if stated else conditioned_x(problem, rows.X)
    xy = np.column_stack([x, (rows.y - base) / problem.scale])
    labels, index = rows.distinct(result.model.grouping)
    A = np.zeros((len(labels), z.shape[1], z.shape[1]))
    C = np.zeros((len(labels), z.shape[1], xy.shape[1]))
    np.add.at(A, index, w[:, None, None] * z[:, :, None] * z[:, None, :])
    np.add.at(C, index, w[:, None, None] * z[:, :, None] * xy[:, None, :])
    return {label: i for i, label in enumerate(labels.tolist())}, A, C


def conditioned_x(problem: Problem, X: Array) -> Array:
    """New rows of X in the coordinates of the problem (n, r)."""
    return _linear(problem.conditioned_x(X), X, problem.x_map)


def _conditioned_z(problem: OneFactorProblem, Z: Array) -> Array:
    """New rows of Z in the coordinates of the problem (n, q)."""
    return _linear(problem.conditioned_z(Z), Z, problem.z_map)


def _linear(shifted: Array, rows: Array, to_problem: Array) -> Array:
    """Rows times a matrix; `shifted` has more digits, but takes what was constant in the fit for constant."""
    product = rows @ to_problem
    apart = np.abs(product - shifted) > 1e-6 * (np.abs(rows) @ np.abs(to_problem))
    return np.where(apart.any(axis=1, keepdims=True), product, shifted)


def conditioned_rows(model: Model, Z: Array) -> list[Array]:
    """Rows of each factor in conditioned coordinates."""
    problem = model.problem
    if len(model.factors) == 1:
        return [_conditioned_z(one_factor(problem), Z)]
    return [Z[:, f.columns] @ problem.z_map[f.columns, f.columns] for f in model.factors]


def of_one_factor(
    result: Fit, rows: NewRows, chosen: tuple[str, ...], observed: Any, new_levels: str, intervals: bool
) -> tuple[list[Index], Conditional | None]:
    """Position of each row's group among the cross-products returned (-1 for the population), and these."""
    model = result.model
    name = model.grouping.name
    labels, index = rows.distinct(model.grouping)
    where = _known(model, model.grouping, labels)
    position = np.full(len(labels), -1, dtype=np.intp)
    parts: list[tuple[Array, Array]] = []
    count = int((where >= 0).sum())
    position[where >= 0] = np.arange(count)
    if count:
        parts.append(_unpack_raw(result, where[where >= 0]))
    if observed is not None:
        extra = observed_rows(result, observed, (name,))
        found, A, C = _observed_cross(result, extra)
        clash = [label for label, at in zip(labels.tolist(), where, strict=True) if at >= 0 and label in found]
        if clash:
            raise LMMError(
                f"observed has the levels {some_of(clash)} that the model was fitted to; "
                f"give observations of new levels of {name} only"
            )
        for i, label in enumerate(labels.tolist()):
            if position[i] < 0 and label in found:
                position[i] = count + found[label]
        parts.append((A, C))
    if new_levels == "error":
        refuse_unseen(model, [label for i, label in enumerate(labels.tolist()) if position[i] < 0], name)
    if not parts:
        return [position[index]], None
    A, C = (np.concatenate(both) for both in zip(*parts, strict=True))
    return [position[index]], OneFactorEffects(result.optimum.factor, A, C, result.solution.beta, count)


def of_several_factors(
    result: Fit, rows: NewRows, chosen: tuple[str, ...], observed: Any, new_levels: str, intervals: bool
) -> tuple[list[Index], Conditional | None]:
    """Level of each row in each factor (-1 for none), and the random effects given the data where that is needed."""
    model: Any = result.model
    more = None
    extra_labels: dict[str, dict[Any, int]] = {}
    if observed is not None:
        every = tuple(f.grouping.name for f in model.factors)
        extra = observed_rows(result, observed, every)
        assert extra.y is not None and extra.Z is not None
        if extra.offset is None and model.offset is not None:
            raise LMMError("the model has an offset: give that of the observed rows in observed (0 for none)")
        codes = []
        for f in model.factors:
            name = f.grouping.name
            labels, index = extra.distinct(f.grouping)
            at = _known(model, f.grouping, labels)
            fresh = np.flatnonzero(at < 0)
            at[fresh] = len(f.grouping.labels) + np.arange(len(fresh))
            extra_labels[name] = dict(zip(labels[fresh].tolist(), at[fresh].tolist(), strict=True))
            codes.append(at[index])
        rest = extra.y - extra.X @ np.nan_to_num(result.beta)
        if extra.offset is not None:
            rest = rest - extra.offset
        w = np.ones(len(rest)) if extra.weights is None else extra.weights
        more = (conditioned_x(model.problem, extra.X), extra.Z, codes, rest, w)
    levels = []
    for f in model.factors:
        name = f.grouping.name
        if name not in chosen:
            levels.append(np.full(len(rows.X), -1, dtype=np.intp))
            continue
        labels, index = rows.distinct(f.grouping)
        at = _known(model, f.grouping, labels)
        for i in np.flatnonzero(at < 0):
            at[i] = extra_labels.get(name, {}).get(labels[i : i + 1].tolist()[0], -1)
        if new_levels == "error":
            refuse_unseen(model, labels[at < 0].tolist(), name)
        levels.append(at[index])
    # without new data the BLUPs of the fit serve
    return levels, posterior_of(result, more) if intervals or more is not None else None


def lost_columns(result: Fit, X: Array) -> NDArray[np.bool_] | None:
    """`undetermined`, None where all coefficients are known."""
    return undetermined(result.model, X) if np.isnan(result.beta).any() else None


def observed_rows(result: Fit, observed: Any, factors: tuple[str, ...]) -> NewRows:
    """Observations of new levels, of which the means must be known."""
    model = result.model
    rows = read_rows(model, observed, "observed", factors, factors, response=True)
    spec = model.spec
    if rows.weights is None and spec is not None and spec.weights_name is not None:
        raise LMMError(
            f"the model has weights: give those of the observed rows in column {spec.weights_name!r} of observed "
            "(1 for a plain observation)"
        )
    lost = lost_columns(result, rows.X)
    if lost is not None and lost.any():
        where = first_rows(np.flatnonzero(lost.any(axis=1)))
        raise LMMError(f"observed: {where} cannot be used: {why_undetermined(model, lost)}; leave these rows out")
    return rows


def _known(model: Model, grouping: Grouping, labels: NDArray[Any]) -> Index:
    """Positions of the levels of which the model has data, -1 for others: for all where there is no response."""
    return grouping.locate(labels) if model.has_response else np.full(len(labels), -1, dtype=np.intp)
