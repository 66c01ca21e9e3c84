"""Symmetric roots of V = W^1/2 (Z Lambda Lambda'Z') W^1/2 + I of every response, by which random effects are taken out.

With a singular value decomposition U S T' of W^1/2 Z Lambda, V^1/2 = I + U ((1 + S^2)^1/2 - 1) U', which is
I + Z Lambda T (f(s) / s^2) T'Lambda'Z' with f(s) / s^2 by a form that does not cancel; so is V^-1/2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ...errors import LMMError
from ...estimation.model import Model
from ...support.types import Array

__all__ = ["GroupRoots", "SharedRoots", "SymmetricRoots", "inner_roots"]

MOST_BYTES = 2**32
"""What roots of the covariance matrices of all responses may take together."""


def inner_roots(factor: Array, gram: Array) -> tuple[Array, Array]:
    """What stands between Z and Z' in V^1/2 - I and V^-1/2 - I (..., q, q), from Lambda and Z'WZ.

    Parameters
    ----------
    factor, gram : (..., q, q) arrays
    """
    values, vectors = np.linalg.eigh(np.swapaxes(factor, -1, -2) @ gram @ factor)
    values = np.maximum(values, 0.0)
    into = 1.0 / (np.sqrt(1.0 + values) + 1.0)
    turned = factor @ vectors
    back = np.swapaxes(turned, -1, -2)
    return (turned * into[..., None, :]) @ back, (turned * (-into / np.sqrt(1.0 + values))[..., None, :]) @ back


class SymmetricRoots(ABC):
    """Roots of V, and their inverses, as they act on residuals."""

    _into: Array
    _out: Array

    def into(self, e: Array) -> Array:
        """V^1/2 e."""
        return self._applied(e, self._into)

    def out(self, e: Array) -> Array:
        """V^-1/2 e."""
        return self._applied(e, self._out)

    @abstractmethod
    def _applied(self, e: Array, inner: Array) -> Array:
        """(I + Z inner Z') e."""


class GroupRoots(SymmetricRoots):
    """Those of one grouping factor, group by group; e (n_responses, n).

    Parameters
    ----------
    model : Model
    factors : (n_responses, q, q) array
        Lambda of each response.
    """

    def __init__(self, model: Model, factors: Array) -> None:
        root = model.root_weights
        self.index, self.m = model.grouping.index, model.grouping.m
        self.order = np.argsort(self.index, kind="stable")
        self.start = np.append(0, np.cumsum(np.bincount(self.index, minlength=self.m)))[:-1]
        self.sizes = np.diff(np.append(self.start, model.nobs))
        self.z = (model.exog_re * root[:, None])[self.order]
        gram = np.add.reduceat(self.z[:, :, None] * self.z[:, None, :], self.start, axis=0)
        self._into, self._out = inner_roots(factors[:, None], gram)

    def _applied(self, e: Array, inner: Array) -> Array:
        sorted_e = e[:, self.order]
        q = self.z.shape[1]
        cross = np.stack([np.add.reduceat(sorted_e * self.z[:, a], self.start, axis=1) for a in range(q)], axis=2)
        along = (inner @ cross[..., None])[..., 0]
        for a in range(q):
            sorted_e += np.repeat(along[:, :, a], self.sizes, axis=1) * self.z[:, a]
        out = np.empty_like(sorted_e)
        out[:, self.order] = sorted_e
        return out


class SharedRoots(SymmetricRoots):
    """Those where groups of several factors share rows; e (n_responses, n).

    Parameters
    ----------
    model : Model
    factors : (n_responses, q, q) array
        Lambda of each response.

    Raises
    ------
    LMMError
        For more responses and levels than there is memory for.
    """

    def __init__(self, model: Model, factors: Array) -> None:
        root = model.root_weights
        columns = []
        for f in model.factors:
            own = np.zeros((model.nobs, len(f.grouping.labels), f.stop - f.start))
            own[np.arange(model.nobs), f.grouping.index] = model.exog_re[:, f.start : f.stop]
            columns.append(own.reshape(model.nobs, -1))
        self.z = np.concatenate(columns, axis=1) * root[:, None]
        levels = self.z.shape[1]
        if 2 * 8 * len(factors) * levels**2 > MOST_BYTES:
            raise LMMError(
                f"scheme='freedman-lane' takes {16 * len(factors) * levels**2 / 1e9:,.0f} GB for {len(factors)} "
                f"responses with {levels} random effects: permute some of the responses (batch[:1000]), or use another "
                "scheme"
            )
        gram = self.z.T @ self.z
        self._into, self._out = (np.empty((len(factors), levels, levels)) for _ in range(2))
        for i, factor in enumerate(factors):
            self._into[i], self._out[i] = inner_roots(_block_diagonal(model, factor, levels), gram)

    def _applied(self, e: Array, inner: Array) -> Array:
        along = (inner @ (e @ self.z)[..., None])[..., 0]
        return np.asarray(e + along @ self.z.T)


def _block_diagonal(model: Model, factor: Array, levels: int) -> Array:
    """Lambda of all levels of all factors (levels, levels)."""
    out, at = np.zeros((levels, levels)), 0
    for f in model.factors:
        m, own = len(f.grouping.labels), factor[f.start : f.stop, f.start : f.stop]
        size = m * len(own)
        out[at : at + size, at : at + size] = np.kron(np.eye(m), own)
        at += size
    return out
