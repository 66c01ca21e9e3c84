"""The scale of the response: what a formula's ``log(y)`` is the logarithm of, and the way back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..support.types import Array

__all__ = ["back_transform"]


CALL = re.compile(r"(?:np\.)?(log|log2|log10|log1p|sqrt)\((.+)\)")

INVERSE: dict[str, Callable[[Array], Any]] = {
    "log": np.exp,
    "log2": np.exp2,
    "log10": lambda x: 10.0**x,
    "log1p": np.expm1,
    "sqrt": lambda x: np.maximum(x, 0.0) ** 2,
}
"""All increasing, so that limits stay limits and medians medians; a root is not negative."""


def back_transform(response: str) -> tuple[str, Callable[[Array], Array]] | None:
    """Name and function of the response before its transformation; None where there is none that is known.

    Examples
    --------
    >>> from fastlmm_core.formula.response_scale import back_transform
    >>> name, back = back_transform("np.log2(rt)")
    >>> name, float(back(3.0))
    ('rt', 8.0)
    """
    found = CALL.fullmatch(response.replace(" ", ""))
    if found is None:
        return None
    depth = 0
    for symbol in found[2]:
        depth += {"(": 1, ")": -1}.get(symbol, 0)
        if depth < 0:  # log(a) + log(b)
            return None
    inside = re.sub(r"([-+*/])", r" \1 ", found[2])
    return inside, INVERSE[found[1]]
