"""What tests of fixed effects need of a fit, and how it is made of sums along directions; formulas in `information`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import kernels
from ..engines.protocol import LinearEngine, Problem
from ..support.types import Array

__all__ = [
    "Moments",
    "adjusted",
    "delta_df",
    "expected_information",
    "inverse_information",
    "projected_traces",
    "reduced_traces",
    "whitened_rows",
]


class Moments(NamedTuple):
    """What tests of the fixed effects need of a fit, or of a stack of fits, in whitened coordinates (see the module).

    Attributes
    ----------
    half : (..., r, r) array
        L_xx^-1, with L_xx L_xx' = X_o'V^-1X_o relative to sigma^2.
    slopes : (..., n_a, r, r) array
        U_k for the unit directions of G^, lower triangle by rows, or for other coordinates of G^.
    shift : (..., n_a) array
        d_k.
    inverse : (..., n_a, n_a) array
        B: zero for the elements of G^ that are not parameters.
    nu : float or (...) array
        n - rank, or n by ML; of each fit where designs differ.
    adjustment : (..., r, r) array or None
        C with Phi_A = sigma^2 x_map L_xx^-T (I + C) L_xx^-1 x_map', for Kenward-Roger.
    left_out : tuple of str
        Parameters at the boundary that were taken for known, in words.
    """

    half: Array
    slopes: Array
    shift: Array
    inverse: Array
    nu: float | Array
    adjustment: Array | None
    left_out: tuple[str, ...] = ()

    def coefficient_df(self, problem: Problem) -> Array:
        """Degrees of freedom of each coefficient (p,), NaN for dropped columns."""
        out = self.df(whitened_rows(problem, self))
        out[problem.dropped] = np.nan
        return out

    def df(self, rows: Array) -> Array:
        """Degrees of freedom of single rows (..., m), whitened (..., m, r)."""
        return self.df_of((rows * rows).sum(axis=-1), self.slopes_of(rows))

    def slopes_of(self, rows: Array) -> Array:
        """Derivatives of a'a along the directions of G^ (..., n_a, m), for whitened rows a (..., m, r)."""
        if rows.ndim == 2:
            return np.asarray(((rows @ self.slopes) * rows).sum(axis=-1))
        # one product per fit
        squares = (rows[..., :, None] * rows[..., None, :]).reshape(*rows.shape[:-1], rows.shape[-1] ** 2)
        flat = self.slopes.reshape(*self.slopes.shape[:-2], rows.shape[-1] ** 2)
        return np.asarray(flat @ np.swapaxes(squares, -1, -2))

    def df_of(self, variance: Array, slopes: Array) -> Array:
        """Degrees of freedom (..., m) of variances sigma^2 v by the delta method.

        Parameters
        ----------
        variance : (..., m) array
            v, a function of G^.
        slopes : (..., n_a, m) array
            Its derivatives along the directions of G^.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return delta_df(
                slopes / variance[..., None, :] - self.shift[..., None], self.inverse, np.asarray(self.nu)[..., None]
            )

    def inner(self, rows: Array) -> Array:
        """A (I + C) A' (..., m, m) for whitened rows A (..., m, r): covariances of l'beta relative to sigma^2."""
        turned = np.swapaxes(rows, -1, -2)
        plain = rows @ turned
        return np.asarray(plain if self.adjustment is None else plain + rows @ self.adjustment @ turned)


def delta_df(u: Array, inverse: Array, nu: float | Array) -> Array:
    """1 / (1 / nu + u'B u) for the columns u (..., n_a, m); nu: one for all, or (..., 1)."""
    with np.errstate(divide="ignore"):  # nothing is estimated: infinite degrees of freedom
        return np.asarray(1.0 / (1.0 / nu + ((inverse @ u) * u).sum(axis=-2)))


def whitened_rows(problem: Problem, found: Moments) -> Array:
    """The unit vectors of the coefficients in whitened coordinates (..., p, r)."""
    return np.asarray(problem.x_map @ np.swapaxes(found.half, -1, -2))


def reduced_traces(criterion: LinearEngine, half: Array) -> Array:
    """tr(V^-1 D_kV V^-1 D_lV) - 2 tr((X'V^-1X)^-1 X'V^-1 D_kV V^-1 D_lV V^-1X) at the last point of order 2 (n_a, n_a).

    Parameters
    ----------
    criterion : LinearEngine
    half : (r, r) array
        L_xx^-1.
    """
    r = len(half)
    weight = np.zeros((r + 1, r + 1))
    weight[:r, :r] = half.T
    return criterion.traces() - 2.0 * criterion.traces(weight)


def projected_traces(traces: Array, slopes: Array) -> Array:
    """tr(P D_kV P D_lV) (..., n_a, n_a), with P = V^-1 - V^-1X (X'V^-1X)^-1 X'V^-1.

    Parameters
    ----------
    traces : (..., n_a, n_a) array
        `reduced_traces`.
    slopes : (..., n_a, r, r) array
        U_k.
    """
    flat = slopes.reshape(*slopes.shape[:-2], slopes.shape[-1] ** 2)
    return np.asarray(traces + flat @ np.swapaxes(flat, -1, -2))


def expected_information(traces: Array, slopes: Array, shift: Array, nu: float | Array) -> Array:
    """Twice the expected information in G^ by REML (..., n_a, n_a), the scale eliminated.

    Parameters
    ----------
    traces, slopes
        See `projected_traces`.
    shift : (..., n_a) array
        tr(P D_kV) / nu.
    nu : float or (...) array
    """
    both = np.asarray(nu)[..., None, None] * shift[..., :, None] * shift[..., None, :]
    return np.asarray(projected_traces(traces, slopes) - both)


def adjusted(found: Moments, sandwich: Callable[[Array], Array]) -> Moments:
    """With Kenward and Roger's adjustment C (1997, eq. 3), whitened.

    Parameters
    ----------
    found : Moments
    sandwich : callable
        S(W) for W (..., n_a, n_a): sum W_kl X'V^-1 D_kV V^-1 D_lV V^-1X, whitened (..., r, r).
    """
    twice = 2.0 * found.inverse
    slopes = found.slopes
    *stack, k, r, _ = slopes.shape
    weighted = (twice @ slopes.reshape(*stack, k, r * r)).reshape(*stack, k * r, r)
    # U_k side by side times weighted U_k below each other
    middle = sandwich(twice) - np.swapaxes(slopes, -3, -2).reshape(*stack, r, k * r) @ weighted
    return found._replace(adjustment=middle + np.swapaxes(middle, -1, -2))


def inverse_information(information: Array) -> Array:
    """Inverse; where there is no minimum, of the part with positive curvature."""
    inverse = kernels.positive_inverse(np.ascontiguousarray(information))
    if inverse is None:
        size = np.sqrt(np.abs(np.diag(information)))
        size[size == 0.0] = 1.0
        values, vectors = np.linalg.eigh(information / np.outer(size, size))
        keep = values > 1e-8 * max(float(values[-1]), 0.0)
        vectors = vectors[:, keep] / size[:, None]
        inverse = (vectors / values[keep]) @ vectors.T
    return inverse
