"""Prediction for populations, known subjects and subjects with a few observations.

For a row (x, z) of a group with cross-products A = Z_i'Z_i and c = Z_i'(y_i - X_i beta):

    M     = L (I + L'A L)^-1 L',  G^ = L L'      (conditional covariance of b / sigma^2)
    b^    = M c                                  (BLUP)
    error of x'beta^ + z'b^ has variance sigma^2 (d'H^-1 d + z'M z),  d = x - X_i'Z_i M z

(Henderson 1975, Biometrics 31, eq. 3 and 5), in the conditioned coordinates of the problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checks import check_share, float_array, row_values
from .distributions import quantile
from .errors import LMMError

if TYPE_CHECKING:
    from .results import LMMResult

__all__ = ["predict"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Rows:
    """New rows in the caller's units."""

    X: Array
    Z: Array | None
    labels: NDArray[Any] | None
    offset: Array | None
    y: Array | None = None
    weights: Array | None = None


def _rows(
    result: LMMResult, data: Any, argument: str, with_random: bool, with_groups: bool, with_response: bool = False
) -> _Rows:
    """Read what is needed of new rows; `with_groups` implies `with_random`."""
    model = result.model
    if data is None:
        labels = model.grouping.labels[model.grouping.index] if with_groups else None
        return _Rows(model.exog, model.exog_re, labels, model.offset)
    if model.spec is not None:
        fixed = model.spec.fixed(data)
        offset = model.spec.offset(data)
        y = model.spec.response(data) if with_response else None
        if not with_groups:
            return _Rows(fixed, model.spec.random_design(data) if with_random else None, None, offset, y)
        terms = model.spec.random(data)
        return _Rows(fixed, np.column_stack([Z for Z, _ in terms]), terms[0][1], offset, y)
    names = ["X"] + ["Z"] * with_random + ["groups"] * with_groups + ["y"] * with_response
    if not hasattr(data, "keys"):
        raise LMMError(
            f"{argument} must be a mapping with the arrays {', '.join(names)}: the model was made from arrays"
        )
    found: dict[str, Any] = {}
    for name in names:
        if name not in data:
            if name == "Z" and model.exog_re_names == ("Intercept",):
                found[name] = np.ones((len(found["X"]), 1))
                continue
            raise LMMError(f"{argument} has no {name!r}; give the arrays {', '.join(names)}")
        is_vector = name in ("y", "groups")
        found[name] = (
            np.asarray(data[name])
            if name == "groups"
            else float_array(data[name], f"{argument}[{name!r}]", 1 if is_vector else 2)
        )
    for name, width in (("X", model.exog.shape[1]), ("Z", model.structure.q)):
        if name in found and found[name].shape[1] != width:
            raise LMMError(f"{argument}[{name!r}] must have {width} columns, not the shape {found[name].shape}")
    n = len(found["X"])
    for name, values in found.items():
        if len(values) != n:
            raise LMMError(f"{argument}[{name!r}] has {len(values)} rows, {argument}['X'] has {n}")
        if name != "groups" and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise LMMError(f"{argument}[{name!r}] has values that are not finite (first: row {row}); remove these rows")
    offset = row_values(data["offset"], f"{argument}['offset']", n) if "offset" in data else None
    weights = row_values(data["weights"], f"{argument}['weights']", n, True) if "weights" in data else None
    return _Rows(found["X"], found.get("Z"), found.get("groups"), offset, found.get("y"), weights)


def _unpack_raw(result: LMMResult, positions: NDArray[np.intp]) -> tuple[Array, Array]:
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


def _observed_cross(result: LMMResult, rows: _Rows) -> tuple[dict[Any, int], Array, Array]:
    """The same for subjects given by a few observations."""
    problem = result.model.problem
    assert rows.Z is not None and rows.labels is not None and rows.y is not None
    w = np.ones(len(rows.y)) if rows.weights is None else rows.weights
    z = problem.conditioned_z(rows.Z)
    base = rows.X @ problem.beta_base + (0.0 if rows.offset is None else rows.offset)
    xy = np.column_stack([problem.conditioned_x(rows.X), (rows.y - base) / problem.scale])
    labels, index = np.unique(rows.labels, return_inverse=True)
    A = np.zeros((len(labels), z.shape[1], z.shape[1]))
    C = np.zeros((len(labels), z.shape[1], xy.shape[1]))
    np.add.at(A, index, w[:, None, None] * z[:, :, None] * z[:, None, :])
    np.add.at(C, index, w[:, None, None] * z[:, :, None] * xy[:, None, :])
    return {label: i for i, label in enumerate(labels.tolist())}, A, C


def predict(
    result: LMMResult, data: Any, level: str, new_levels: str, interval: str | None, coverage: float, observed: Any,
    offset: Any, weights: Any,
) -> Any:  # fmt: skip
    """See `LMMResult.predict`."""
    if level not in ("population", "subject"):
        raise LMMError(f"level={level!r} is unknown: use 'population' or 'subject'")
    if new_levels not in ("error", "population"):
        raise LMMError(f"new_levels={new_levels!r} is unknown: use 'error' or 'population'")
    if interval not in (None, "confidence", "prediction"):
        raise LMMError(f"interval={interval!r} is unknown: use 'confidence', 'prediction' or None")
    check_share(coverage, "coverage")
    model, problem = result.model, result.model.problem
    with_groups = level == "subject"
    rows = _rows(result, data, "data", with_groups or interval == "prediction", with_groups)
    given_offset = rows.offset if offset is None else row_values(offset, "offset", len(rows.X))
    if given_offset is None and model.offset is not None:
        raise LMMError("the model has an offset: give that of the new rows as offset= (0 for none)")
    if weights is not None:
        weights = row_values(weights, "weights", len(rows.X), True)
    mean = rows.X @ np.nan_to_num(result._params)
    if given_offset is not None:
        mean = mean + given_offset
    positions = np.full(len(mean), -1, dtype=np.intp)
    A = C = None
    if with_groups:
        positions, A, C = _subjects(result, rows, observed, new_levels)
    known = positions >= 0
    relative = result.optimum.factor @ result.optimum.factor.T
    x = problem.conditioned_x(rows.X)
    z = problem.conditioned_z(rows.Z) if rows.Z is not None else None
    gain = None
    if A is not None and C is not None and known.any():
        assert z is not None
        # M = L (I + L'A L)^-1 L' has no differences in it, however large L is
        factor = result.optimum.factor
        conditional = factor @ np.linalg.solve(
            np.eye(len(factor)) + factor.T @ A @ factor, np.broadcast_to(factor.T, A.shape)
        )
        shrink = conditional @ C
        b = problem.scale * (shrink @ np.append(-result._beta_o, 1.0))
        mean = mean.copy()
        mean[known] += np.einsum("ij,ij->i", z[known], b[positions[known]])
        gain = (shrink[:, :, :-1], conditional)
    if interval is None:
        return mean
    variance = np.zeros(len(mean))
    direction = x.copy()
    if gain is not None:
        assert z is not None
        shrink, conditional = gain
        zk = z[known]
        direction[known] -= np.einsum("ij,ijk->ik", zk, shrink[positions[known]])
        variance[known] += np.einsum("ij,ijk,ik->i", zk, conditional[positions[known]], zk)
    half = np.linalg.solve(result._chol, direction.T) if problem.rank else direction.T
    variance += np.einsum("ji,ji->i", half, half)
    if interval == "prediction":
        assert z is not None
        unknown = ~known
        variance[unknown] += np.einsum("ij,jk,ik->i", z[unknown], relative, z[unknown])
        w = model.weights if weights is None and data is None else weights
        variance += 1.0 if w is None else 1.0 / w
    se = np.sqrt(result.sigma2 * variance)
    width = float(quantile(0.5 + 0.5 * coverage, None)) * se
    columns = {"mean": mean, "lower": mean - width, "upper": mean + width, "se": se}
    return columns if model.spec is None else model.spec.frame(columns)


def _subjects(
    result: LMMResult, rows: _Rows, observed: Any, new_levels: str
) -> tuple[NDArray[np.intp], Array | None, Array | None]:
    """Position of each row's group among the cross-products returned; -1 for the population."""
    model = result.model
    assert rows.labels is not None
    labels, index = np.unique(rows.labels, return_inverse=True)
    where = model.grouping.locate(labels)
    position = np.full(len(labels), -1, dtype=np.intp)
    parts: list[tuple[Array, Array]] = []
    count = int((where >= 0).sum())
    position[where >= 0] = np.arange(count)
    if count:
        parts.append(_unpack_raw(result, where[where >= 0]))
    if observed is not None:
        extra = _rows(result, observed, "observed", True, True, with_response=True)
        found, A, C = _observed_cross(result, extra)
        clash = [label for label, at in zip(labels.tolist(), where, strict=True) if at >= 0 and label in found]
        if clash:
            raise LMMError(
                f"observed has the levels {_some(clash)} that the model was fitted to; "
                f"give observations of new levels of {model.grouping.name} only"
            )
        for i, label in enumerate(labels.tolist()):
            if position[i] < 0 and label in found:
                position[i] = count + found[label]
        parts.append((A, C))
    missing = [label for i, label in enumerate(labels.tolist()) if position[i] < 0]
    if missing and new_levels == "error":
        raise LMMError(
            f"data has levels of {model.grouping.name} that the model has not seen: {_some(missing)}; use "
            'new_levels="population" for the population value, or give observations of them as observed='
        )
    if not parts:
        return position[index], None, None
    return position[index], np.concatenate([a for a, _ in parts]), np.concatenate([c for _, c in parts])


def _some(labels: list[Any]) -> str:
    shown = ", ".join(repr(label) for label in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"
