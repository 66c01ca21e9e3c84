"""Weights of comparisons among means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import gcd, lcm
from typing import Any

import numpy as np

from ...errors import LMMError
from ...support.hints import option
from ...support.types import Array

__all__ = ["CONTRASTS", "Method", "comparisons", "contrast_weights", "polynomial_weights"]

Weights = Mapping[str, Sequence[float]]
Method = str | Mapping[str, Sequence[float]] | Mapping[str, str | Weights]
"""A name, names to weights, or for interactions factors to one of these."""

CONTRASTS = ("pairwise", "revpairwise", "reference", "sequential", "consecutive", "effects", "polynomial")
"""Names of the comparisons; "consecutive" is another word for "sequential"."""

_DEGREES = ("linear", "quadratic", "cubic", "quartic")
_MOST = 6  # degrees of a polynomial


def comparisons(
    method: Method, levels: Mapping[str, Sequence[Any]], ref: Any = None, coded: tuple[Any, ...] = ()
) -> tuple[dict[str, list[str]], Array]:
    """Labels and weights of the comparisons of all combinations of the levels of some factors.

    Parameters
    ----------
    method : str or mapping
        One of `CONTRASTS`, names to weights, or factors to one of these for contrasts of contrasts.
    levels : mapping
        Of each factor; the first varies fastest among the means.
    ref : label, tuple of labels, or mapping of factors to labels, optional
    coded : tuple of labels
        As for `contrast_weights`.

    Returns
    -------
    labels : dict
        The column "contrast", or one of each factor.
    weights : (comparisons, means) array
        Of an interaction: products of those of the factors.

    Raises
    ------
    LMMError
        As by `contrast_weights`, and where a factor has no comparison.
    """
    if not _of_factors(method, levels):
        order = list(product(*reversed(list(levels.values()))))
        found = contrast_weights(method, [member[::-1] for member in order], ref, coded)  # type: ignore[arg-type]
        return {"contrast": list(found)}, np.array(list(found.values()))
    refs = _by_factor(method, levels, ref)
    of_factor: Mapping[str, Any] = method  # type: ignore[assignment]
    of_each: list[dict[str, Array]] = []
    for name, start in zip(levels, coded, strict=True):
        try:
            members = [(level,) for level in levels[name]]
            of_each.append(contrast_weights(of_factor[name], members, refs.get(name), (start,)))
        except LMMError as error:
            raise LMMError(f"{error} (factor {name!r})") from error
    weights = np.ones((1, 1))
    for found in reversed(of_each):
        weights = np.kron(weights, np.array(list(found.values())))
    rows = list(product(*(list(found) for found in reversed(of_each))))
    return {name: [row[len(of_each) - 1 - i] for row in rows] for i, name in enumerate(levels)}, weights


def _of_factors(method: Any, levels: Mapping[str, Any]) -> bool:
    """Whether comparisons are given factor by factor, and not as weights."""
    if not isinstance(method, Mapping):
        return False
    return any(
        isinstance(value, Mapping) or (isinstance(value, str) and (name in levels or value in CONTRASTS))
        for name, value in method.items()
    )


def _by_factor(method: Any, levels: Mapping[str, Any], ref: Any) -> dict[str, Any]:
    """References of the factors of an interaction, after a look at their names."""
    for name in method:
        if name not in levels:
            raise LMMError(f"contrasts: {name!r} is not one of the factors, which are {', '.join(map(repr, levels))}")
    for name in levels:
        if name not in method:
            raise LMMError(f"contrasts: the factor {name!r} has no comparison; give it one, or move the factor to by=")
    if ref is None:
        return {}
    if not isinstance(ref, Mapping) or not set(ref) <= set(levels):
        raise LMMError(
            "ref: with contrasts of several factors give a mapping of factors to levels, e.g. "
            f"ref={{{next(iter(levels))!r}: {levels[next(iter(levels))][0]!r}}}"
        )
    return dict(ref)


def contrast_weights(
    method: str | Weights,
    members: Sequence[tuple[Any, ...]],
    ref: Any = None,
    coded: tuple[Any, ...] = (),
) -> dict[str, Array]:
    """Weights of the means in each comparison.

    Parameters
    ----------
    method : str or mapping
        One of `CONTRASTS`, or names to weights.
    members : sequence of tuple
        Levels of each of the k means.
    ref : label or tuple of labels, optional
        With what "reference" compares; by default `coded`, or the first where that is no member.
    coded : tuple of labels
        The reference levels of the formula's coding.

    Returns
    -------
    dict
        Name to (k,) weights.

    Raises
    ------
    LMMError
        For unknown methods or members, and weights of the wrong number.
    """
    k = len(members)
    names = [" ".join(map(str, member)) for member in members]
    identity = np.eye(k)
    if ref is not None and method != "reference":
        raise LMMError("ref is for contrasts='reference'; leave it out")
    if not isinstance(method, str):
        return _given(method, k)
    if method not in CONTRASTS:
        raise LMMError(
            f"contrasts: the method {method!r} is unknown: use one of {', '.join(CONTRASTS)}, or names to weights"
            f"{option('contrasts', method, CONTRASTS)}"
        )
    if k < 2:
        raise LMMError(f"contrasts: the method {method!r} needs at least two means, there is one")
    if method == "effects":
        return {f"{names[i]} effect": identity[i] - 1.0 / k for i in range(k)}
    if method == "polynomial":
        return polynomial_weights(k)
    if method == "reference":
        known = [i for i, member in enumerate(members) if member == coded]
        at = _place(ref, members) if ref is not None else known[0] if known else 0
        pairs = [(i, at) for i in range(k) if i != at]
    elif method in ("sequential", "consecutive"):
        pairs = [(i + 1, i) for i in range(k - 1)]
    elif method == "pairwise":
        pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    else:
        pairs = [(i, j) for i in range(k) for j in range(i)]
    return {f"{names[i]} - {names[j]}": identity[i] - identity[j] for i, j in pairs}


def _given(method: Mapping[str, Sequence[float]], k: int) -> dict[str, Array]:
    if not isinstance(method, Mapping) or not method:
        raise LMMError("contrasts: the method must be a name, or a mapping of names to weights: {'a - b': [1, -1, 0]}")
    out = {}
    for name, weights in method.items():
        try:
            values = np.array(weights, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise LMMError(f"contrasts: the weights of the method {name!r} are not numbers") from error
        if values.shape != (k,) or not np.isfinite(values).all():
            raise LMMError(
                f"contrasts: the method {name!r} must have {k} finite weights, one per mean; it has {weights!r}"
            )
        out[str(name)] = values
    return out


def _place(ref: Any, members: Sequence[tuple[Any, ...]]) -> int:
    wanted = tuple(ref) if isinstance(ref, (tuple, list)) else (ref,)
    for i, member in enumerate(members):
        if member == wanted:
            return i
    listed = ", ".join(repr(m[0] if len(m) == 1 else m) for m in members)
    raise LMMError(f"ref={ref!r} is not one of the means: {listed}")


def polynomial_weights(k: int) -> dict[str, Array]:
    """Orthogonal polynomials in k equally spaced levels, as the smallest integers, rising at the last level.

    Parameters
    ----------
    k : int

    Returns
    -------
    dict
        "linear", "quadratic", "cubic", "quartic", "degree 5", "degree 6" to (k,) weights.
    """
    found: list[list[Fraction]] = [[Fraction(1)] * k]
    for _ in range(min(k - 1, _MOST)):
        # the last one times the levels, made orthogonal to all before
        column = [Fraction(x) * value for x, value in enumerate(found[-1])]
        for other in found:
            inner = sum((a * b for a, b in zip(column, other, strict=True)), Fraction(0))
            factor = inner / sum((b * b for b in other), Fraction(0))
            column = [a - factor * b for a, b in zip(column, other, strict=True)]
        found.append(column)
    out = {}
    for degree, column in enumerate(found[1:], start=1):
        whole = [value * lcm(*(v.denominator for v in column)) for value in column]
        divisor = gcd(*(int(v) for v in whole))
        name = _DEGREES[degree - 1] if degree <= len(_DEGREES) else f"degree {degree}"
        out[name] = np.array([float(v / divisor) for v in whole])
    return out
