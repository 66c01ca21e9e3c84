"""Fits with structured residuals: minimise, certify, and say what lies on the boundary.

The parameters phi of a structure have no constraints: what lies on the boundary (a correlation of 1, a variance of 0)
is at infinity.  A search that runs there ends where the criterion does not fall any more, and the structure tells what
has run into its limit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .optimize import CERTIFIED, Optimum, decrement_of, run_once

if TYPE_CHECKING:
    from ..design.residual import ResidualPart
    from ..engines.protocol import Engine

__all__ = ["minimise_residual"]

Array = NDArray[np.float64]


def minimise_residual(
    engine: Engine, part: ResidualPart, start: Array, method: str | Callable[..., Any], options: dict[str, Any] | None
) -> Optimum:
    """Minimise the criterion in phi and certify what was found.

    Parameters
    ----------
    engine : Engine
    part : ResidualPart
    start : (k,) array
    method, options
        See `LinearMixedModel.fit`.

    Raises
    ------
    LMMError
        For an unknown method, or a start at which the criterion is not defined.
    """
    options = dict(options or {})
    engine.n_evaluations = 0
    name = method if isinstance(method, str) else getattr(method, "__name__", "callable")
    x, finished, words = start, True, ""
    trace: tuple[tuple[float, float, float], ...] = ()
    if part.n_parameters:
        if method == "newton":
            options.setdefault("tolerance", min(1e-9 * sqrt(part.subject.n_slots), 1e-6))
        found = run_once(engine, start, method, options)
        x, finished, words, trace = found.theta, found.success, found.message.lower(), found.trace
    value, gradient, hessian = engine.evaluate(x, 2)
    assert gradient is not None and hessian is not None
    decrement, lowest = decrement_of(gradient, hessian) if len(x) else (0.0, 1.0)
    converged = bool(decrement <= CERTIFIED and lowest >= -1e-6 and isfinite(value))
    limits = part.boundaries(x)
    if converged:
        message = "certified: the gradient vanishes to rounding error"
        if limits:
            message += ", on the boundary"
    elif not finished and "iteration" in words:
        message = (
            "not certified: stopped at the limit of iterations; the criterion can still be lowered (a Newton step "
            f"promises {0.5 * decrement**2:.1e})"
        )
    elif decrement <= CERTIFIED:
        message = "not certified: a saddle point, the criterion can still be lowered"
    else:
        message = f"not certified: the criterion can still be lowered by about {0.5 * decrement**2:.1e}"
    return Optimum(
        theta=x,
        factor=np.zeros((0, 0)),
        value=float(value),
        gradient=gradient,
        hessian=hessian,
        gradient_norm=decrement,
        converged=converged,
        singular=bool(limits),
        n_evaluations=engine.n_evaluations,
        method=name,
        message=message,
        null_space=np.zeros((0, 0)),
        trace=trace,
    )
