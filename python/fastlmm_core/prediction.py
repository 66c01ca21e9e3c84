"""Prediction for populations, known subjects and subjects with a few observations.

For a row (x, z) and random effects b of all levels with cross-products A = Z'Z and c = Z'(y - X beta):

    M     = L (I + L'A L)^-1 L',  G^ = L L'      (conditional covariance of b / sigma^2)
    b^    = M c                                  (BLUP)
    error of x'beta^ + z'b^ has variance sigma^2 (d'H^-1 d + z'M z),  d = x - X'Z M z

(Henderson 1975, Biometrics 31, eq. 3 and 5), in the conditioned coordinates of the problem.  With one grouping factor
A and M fall apart into groups; with several the root of M comes from posterior.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .checks import check_share, row_values
from .distributions import quantile
from .errors import LMMError
from .new_rows import NewRows, chosen_factors, read_rows
from .posterior import posterior_of

if TYPE_CHECKING:
    from .model import LinearMixedModel
    from .results import LMMResult

__all__ = ["predict"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


class _Conditional(Protocol):
    """b given y."""

    def at(self, Z: list[Array], levels: list[Index]) -> tuple[Array, Array]:
        """z'M Z'[X_o, (y - X beta) / scale] (n, r + 1) and z'Mz (n,) for rows z in conditioned coordinates."""
        ...


class _OneFactor:
    """The groups of one factor, each by itself.

    Parameters
    ----------
    factor : (q, q) array
        L.
    A : (g, q, q) array
    C : (g, q, r + 1) array
        Z'[X_o y_o].
    beta : (r,) array
    """

    def __init__(self, factor: Array, A: Array, C: Array, beta: Array) -> None:
        # M = L (I + L'A L)^-1 L' has no differences in it, however large L is
        self.M = factor @ np.linalg.solve(
            np.eye(len(factor)) + factor.T @ A @ factor, np.broadcast_to(factor.T, A.shape)
        )
        self.carried = self.M @ C
        self.carried[:, :, -1] -= self.carried[:, :, :-1] @ beta

    def at(self, Z: list[Array], levels: list[Index]) -> tuple[Array, Array]:
        (z,), (level,) = Z, levels
        known = level >= 0
        carried, variance = np.zeros((len(z), self.carried.shape[2])), np.zeros(len(z))
        z, level = z[known], level[known]
        carried[known] = np.einsum("ij,ijk->ik", z, self.carried[level])
        variance[known] = np.einsum("ij,ijk,ik->i", z, self.M[level], z)
        return carried, variance


def _unpack_raw(result: LMMResult, positions: Index) -> tuple[Array, Array]:
    """A (g, q, q) and Z'[X y_res] (g, q, p+1) of known groups in conditioned coordinates."""
    problem = result.model.problem
    q, k = problem.structure.q, problem.rank + 1
    lines = problem.raw[positions]
    lower = np.zeros((len(lines), q, q))
    rows, columns = np.tril_indices(q)
    lower[:, rows, columns] = lines[:, : len(rows)]
    lower[:, columns, rows] = lines[:, : len(rows)]
    cross = lines[:, len(rows) : len(rows) + q * k].reshape(-1, q, k)
    turn = problem.z_transform
    return turn.T @ lower @ turn, turn.T @ cross @ problem.xy_transform


def _observed_cross(result: LMMResult, rows: NewRows) -> tuple[dict[Any, int], Array, Array]:
    """The same for subjects given by a few observations."""
    problem = result.model.problem
    assert rows.Z is not None and rows.y is not None
    w = np.ones(len(rows.y)) if rows.weights is None else rows.weights
    z = problem.conditioned_z(rows.Z)
    base = rows.X @ problem.beta_base + (0.0 if rows.offset is None else rows.offset)
    xy = np.column_stack([problem.conditioned_x(rows.X), (rows.y - base) / problem.scale])
    labels, index = rows.distinct(result.model.grouping)
    A = np.zeros((len(labels), z.shape[1], z.shape[1]))
    C = np.zeros((len(labels), z.shape[1], xy.shape[1]))
    np.add.at(A, index, w[:, None, None] * z[:, :, None] * z[:, None, :])
    np.add.at(C, index, w[:, None, None] * z[:, :, None] * xy[:, None, :])
    return {label: i for i, label in enumerate(labels.tolist())}, A, C


def predict(
    result: LMMResult, data: Any, level: Any, new_levels: str, interval: str | None, coverage: float, observed: Any,
    offset: Any, weights: Any,
) -> Any:  # fmt: skip
    """See `LMMResult.predict`."""
    model, problem = result.model, result.model.problem
    chosen = chosen_factors(model, level)
    if new_levels not in ("error", "population"):
        raise LMMError(f"new_levels={new_levels!r} is unknown: use 'error' or 'population'")
    if interval not in (None, "confidence", "prediction"):
        raise LMMError(f"interval={interval!r} is unknown: use 'confidence', 'prediction' or None")
    check_share(coverage, "coverage")
    every = tuple(f.grouping.name for f in model.factors)
    rows = read_rows(model, data, "data", every if interval == "prediction" else chosen, chosen)
    given_offset = rows.offset if offset is None else row_values(offset, "offset", len(rows.X))
    if given_offset is None and model.offset is not None:
        raise LMMError("the model has an offset: give that of the new rows as offset= (0 for none)")
    if weights is not None:
        weights = row_values(weights, "weights", len(rows.X), True)
    mean = rows.X @ np.nan_to_num(result._params)
    if given_offset is not None:
        mean = mean + given_offset
    levels = [np.full(len(mean), -1, dtype=np.intp) for _ in every]
    conditional: _Conditional | None = None
    if chosen:
        finder = _one_factor if len(every) == 1 else _several_factors
        levels, conditional = finder(result, rows, chosen, observed, new_levels, interval is not None)
    z = [] if rows.Z is None else _conditioned(model, rows.Z)
    if conditional is not None:
        carried, variance = conditional.at(z, levels)
        mean = mean + problem.scale * carried[:, -1]
    elif chosen:
        mean = mean + _blup_part(result, rows, levels)
    if interval is None:
        return mean
    direction = problem.conditioned_x(rows.X)
    if conditional is None:
        variance = np.zeros(len(mean))
    else:
        direction = direction - carried[:, :-1]
    half = np.linalg.solve(result._chol, direction.T) if problem.rank else direction.T
    variance = variance + np.einsum("ji,ji->i", half, half)
    if interval == "prediction":
        for f, part, position in zip(model.factors, z, levels, strict=True):
            turned = part @ result.optimum.factor[f.columns, f.columns]
            variance += np.where(position < 0, np.einsum("ij,ij->i", turned, turned), 0.0)
        w = model.weights if weights is None and data is None else weights
        variance += 1.0 if w is None else 1.0 / w
    se = np.sqrt(result.sigma2 * variance)
    width = float(quantile(0.5 + 0.5 * coverage, None)) * se
    columns = {"mean": mean, "lower": mean - width, "upper": mean + width, "se": se}
    return columns if model.spec is None else model.spec.frame(columns)


def _conditioned(model: LinearMixedModel, Z: Array) -> list[Array]:
    """Rows of each factor in conditioned coordinates."""
    problem = model.problem
    if len(model.factors) == 1:
        return [problem.conditioned_z(Z)]
    return [Z[:, f.columns] @ problem.z_map[f.columns, f.columns] for f in model.factors]


def _blup_part(result: LMMResult, rows: NewRows, levels: list[Index]) -> Array:
    """Z b of the levels found."""
    assert rows.Z is not None
    out = np.zeros(len(rows.X))
    for f, b, position in zip(result.model.factors, result._effects_by_factor, levels, strict=True):
        own = np.einsum("ij,ij->i", rows.Z[:, f.columns], b[position])
        out += np.where(position >= 0, own, 0.0)
    return out


def _one_factor(
    result: LMMResult, rows: NewRows, chosen: tuple[str, ...], observed: Any, new_levels: str, intervals: bool
) -> tuple[list[Index], _Conditional | None]:
    """Position of each row's group among the cross-products returned (-1 for the population), and these."""
    model = result.model
    name = model.grouping.name
    labels, index = rows.distinct(model.grouping)
    where = model.grouping.locate(labels)
    position = np.full(len(labels), -1, dtype=np.intp)
    parts: list[tuple[Array, Array]] = []
    count = int((where >= 0).sum())
    position[where >= 0] = np.arange(count)
    if count:
        parts.append(_unpack_raw(result, where[where >= 0]))
    if observed is not None:
        extra = read_rows(model, observed, "observed", (name,), (name,), response=True)
        found, A, C = _observed_cross(result, extra)
        clash = [label for label, at in zip(labels.tolist(), where, strict=True) if at >= 0 and label in found]
        if clash:
            raise LMMError(
                f"observed has the levels {_some(clash)} that the model was fitted to; "
                f"give observations of new levels of {name} only"
            )
        for i, label in enumerate(labels.tolist()):
            if position[i] < 0 and label in found:
                position[i] = count + found[label]
        parts.append((A, C))
    if new_levels == "error":
        _refuse_unseen([label for i, label in enumerate(labels.tolist()) if position[i] < 0], name)
    if not parts:
        return [position[index]], None
    A, C = (np.concatenate(both) for both in zip(*parts, strict=True))
    return [position[index]], _OneFactor(result.optimum.factor, A, C, result._beta_o)


def _several_factors(
    result: LMMResult, rows: NewRows, chosen: tuple[str, ...], observed: Any, new_levels: str, intervals: bool
) -> tuple[list[Index], _Conditional | None]:
    """Level of each row in each factor (-1 for none), and the random effects given the data where that is needed."""
    model: Any = result.model
    more = None
    extra_labels: dict[str, dict[Any, int]] = {}
    if observed is not None:
        every = tuple(f.grouping.name for f in model.factors)
        extra = read_rows(model, observed, "observed", every, every, response=True)
        assert extra.y is not None and extra.Z is not None
        if extra.offset is None and model.offset is not None:
            raise LMMError("the model has an offset: give that of the observed rows in observed (0 for none)")
        codes = []
        for f in model.factors:
            name = f.grouping.name
            labels, index = extra.distinct(f.grouping)
            at = f.grouping.locate(labels)
            fresh = np.flatnonzero(at < 0)
            at[fresh] = len(f.grouping.labels) + np.arange(len(fresh))
            extra_labels[name] = dict(zip(labels[fresh].tolist(), at[fresh].tolist(), strict=True))
            codes.append(at[index])
        rest = extra.y - extra.X @ np.nan_to_num(result._params)
        if extra.offset is not None:
            rest = rest - extra.offset
        w = np.ones(len(rest)) if extra.weights is None else extra.weights
        more = (model.problem.conditioned_x(extra.X), extra.Z, codes, rest, w)
    levels = []
    for f in model.factors:
        name = f.grouping.name
        if name not in chosen:
            levels.append(np.full(len(rows.X), -1, dtype=np.intp))
            continue
        labels, index = rows.distinct(f.grouping)
        at = f.grouping.locate(labels)
        for i in np.flatnonzero(at < 0):
            at[i] = extra_labels.get(name, {}).get(labels[i : i + 1].tolist()[0], -1)
        if new_levels == "error":
            _refuse_unseen(labels[at < 0].tolist(), name)
        levels.append(at[index])
    # without new data the BLUPs of the fit serve
    return levels, posterior_of(result, more) if intervals or more is not None else None


def _refuse_unseen(missing: list[Any], name: str) -> None:
    if missing:
        raise LMMError(
            f"data has levels of {name} that the model has not seen: {_some(missing)}; use "
            'new_levels="population" for the population value, or give observations of them as observed='
        )


def _some(labels: list[Any]) -> str:
    shown = ", ".join(repr(label) for label in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"
