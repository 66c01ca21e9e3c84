"""Runs of one method of optimisation, the compiled Newton or one of scipy.optimize, without policy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import LMMError
from ..kernels import minimize_newton
from ..kernels.records.objectives import Evaluated
from ..support.types import Array

__all__ = ["Ended", "newton", "run", "run_once", "said_clearly"]

_WITHOUT_GRADIENT = {"nelder-mead", "powell", "cobyla", "cobyqa"}
_WITH_HESSIAN = {"newton-cg", "dogleg", "trust-ncg", "trust-krylov", "trust-exact", "trust-constr"}

SCIPY = ("Nelder-Mead", "Powell", "CG", "BFGS", "L-BFGS-B", "TNC", "COBYLA", "SLSQP", "trust-constr", "trust-exact")
"""Methods of scipy.optimize.minimize that messages name."""


class Ended(NamedTuple):
    """Where a method of optimisation ended, with what it tells of that point: what `minimize_newton` returns.

    Attributes
    ----------
    theta : array
    gradient, hessian : arrays or None
    value : float
    decrement, lowest : float or None
        See `decrement_of`; of the compiled Newton method.
    n_evaluations : int
        Of the compiled Newton method.
    trace : tuple
        See `Optimum`.
    success : bool
    radius : float
        Of the trust region, with which the search would go on.
    limited : bool
        Whether another method was ended by its limit of iterations, which is all that ends Newton's without success.
    """

    theta: Array
    gradient: Array | None
    hessian: Array | None
    value: float
    decrement: float | None
    lowest: float | None
    n_evaluations: int
    trace: tuple[tuple[float, float, float], ...]
    success: bool
    radius: float = 1.0
    limited: bool = False

    @property
    def unfinished(self) -> bool:
        """Whether the limit of iterations ended it."""
        return not self.success and (self.limited or self.decrement is not None)


class _Objective:
    """The criterion as scipy sees it."""

    def __init__(self, criterion: Evaluated) -> None:
        self.criterion = criterion

    def __call__(self, theta: Array, *args: Any) -> float:
        return self.criterion.evaluate(theta, 0)[0]

    def gradient(self, theta: Array, *args: Any) -> Array:
        out = self.criterion.evaluate(theta, 1)[1]
        assert out is not None
        return out

    def hessian(self, theta: Array, *args: Any) -> Array:
        out = self.criterion.evaluate(theta, 2)[2]
        assert out is not None
        return out


def newton(
    criterion: Evaluated, start: Array, radius: float = 1.0, /, maxiter: int = 200, tolerance: float = 1e-8
) -> Ended:
    """The compiled trust-region Newton; it stops at a decrement of `tolerance`."""
    return Ended(*minimize_newton(criterion, start, tolerance, maxiter, radius))


def run(criterion: Evaluated, start: Array, method: str | Callable[..., Any], options: dict[str, Any]) -> Ended:
    if method == "newton":
        return newton(criterion, start, **options)
    import scipy.optimize

    minimize: Any = scipy.optimize.minimize
    objective = _Objective(criterion)
    derivatives: dict[str, Any] = {}
    name = method.lower() if isinstance(method, str) else ""
    if name not in _WITHOUT_GRADIENT:
        derivatives["jac"] = objective.gradient
    if name in _WITH_HESSIAN or not name:
        derivatives["hess"] = objective.hessian
    with warnings.catch_warnings():
        # the outcome is judged by its own gradient below; only options that a method does not know are refused
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Unknown solver options")
        found = minimize(objective, start, method=method, tol=1e-12, options=options, **derivatives)
    theta = np.ascontiguousarray(found.x, dtype=float)
    success, limited = getattr(found, "success", True), "iteration" in str(getattr(found, "message", "")).lower()
    return Ended(theta, None, None, float(found.fun), None, None, 0, (), bool(success), limited=limited)


def said_clearly(error: Exception, method: str | Callable[..., Any]) -> Exception:
    """What an unknown method or option is refused with; any other error as it is."""
    if isinstance(error, TypeError) and "unexpected keyword" in str(error):
        return LMMError(f"options: {error}; newton knows maxiter and tolerance")
    if isinstance(error, Warning):
        name = method if isinstance(method, str) else getattr(method, "__name__", "callable")
        return LMMError(f"options: {str(error).lower()}; method={name!r} does not know them")
    if isinstance(error, ValueError) and "Unknown solver" in str(error):
        from ..support.arguments import near
        from ..support.hints import option

        hint = option("method of fit", method, ()) or f"; {near(str(method), SCIPY)}"
        return LMMError(f"method={method!r} is unknown: use 'newton' or a method of scipy.optimize.minimize{hint}")
    return error


def run_once(criterion: Evaluated, start: Array, method: str | Callable[..., Any], options: dict[str, Any]) -> Ended:
    """One run of a method, without policy.

    Raises
    ------
    LMMError
        For an unknown method, options that it does not know, or a start at which the criterion is not defined.
    """
    try:
        return run(criterion, start, method, options)
    except (TypeError, ValueError, Warning) as error:
        raise said_clearly(error, method) from None
    except FloatingPointError as error:
        raise LMMError(f"{error}; start from other parameters") from None
