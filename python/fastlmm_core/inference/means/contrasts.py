"""Weights of comparisons among means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.words import option

__all__ = ["CONTRASTS", "contrast_weights", "polynomial_weights"]

Array = NDArray[np.float64]

CONTRASTS = ("pairwise", "revpairwise", "reference", "sequential", "effects", "polynomial")
"""Names of the comparisons."""

_DEGREES = ("linear", "quadratic", "cubic", "quartic")
_MOST = 6  # degrees of a polynomial


def contrast_weights(
    method: str | Mapping[str, Sequence[float]],
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
    elif method == "sequential":
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
