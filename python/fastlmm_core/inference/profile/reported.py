"""The variance parameters of structures that are reported, as functions of coordinates without constraints.

Coordinates z = (x, s): the parameters of the random effects' structures, those of the residuals', log sigma^2 of the
conditioned problem.  Each parameter psi has a transform c = t(psi) that knows no bounds: the logarithm of a variance,
Fisher's z of a correlation, or psi itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import atanh, exp, inf, log, nan, tanh
from typing import Literal, NamedTuple

import numpy as np

from ...covariance.effects.blocks import EffectsBlocks
from ...covariance.effects.catalogue import blocks_of
from ...covariance.effects.structure import EffectsStructure
from ...covariance.elements import sd_and_cor
from ...covariance.parameters import FREE
from ...design.residual import Stratum
from ...estimation.fit import Fit
from ...estimation.statements import residual_names
from ...support.types import Array
from ..residual_parameters import kind_of

__all__ = ["Curved", "Value", "reported"]

Kind = Literal["log", "fisher", "plain"]

NEGLIGIBLE = log(1e-10)
"""Logarithm of a variance relative to that of the response, below which it counts as zero."""

NEAR_ONE = 6.0
"""Fisher's z of a correlation that counts as 1."""

APART = 1e-5
"""Step of differences of derivatives that are exact."""


class Curved(NamedTuple):
    """c at a point of z, its gradient and its Hessian."""

    c: float
    gradient: Array
    hessian: Array


class Value(ABC):
    """A parameter.

    Attributes
    ----------
    name : str
    kind : {"log", "fisher", "plain"}
        What c is; "log" is that of a variance, of which a standard deviation is reported if `root`.
    root : bool
    """

    name: str
    kind: Kind
    root = False

    @abstractmethod
    def natural(self, z: Array) -> float:
        """Psi at a point."""

    @abstractmethod
    def at(self, z: Array) -> Curved:
        """C and its derivatives at a point."""

    @abstractmethod
    def estimate(self, fit: Fit) -> float:
        """Psi of a fit, which says what is zero."""

    def back(self, c: float) -> float:
        """Psi from c."""
        if self.kind == "log":
            return exp(0.5 * c if self.root else c)
        return tanh(c) if self.kind == "fisher" else c

    def limit(self, outward: int) -> float:
        """Psi at its bound on one side; infinite where there is none."""
        if self.kind == "fisher":
            return float(outward)
        return 0.0 if self.kind == "log" and outward < 0 else outward * inf

    def side(self, c: float, scale: float) -> int:
        """On which side an estimate lies at its limit, 0 inside; `scale` is the variance of the response."""
        if self.kind == "fisher" and abs(c) > NEAR_ONE:
            return 1 if c > 0.0 else -1
        return -1 if self.kind == "log" and c - log(scale) < NEGLIGIBLE else 0

    def transformed(self, psi: float, first: Array, second: Array) -> Curved:
        """C and its derivatives from those of psi."""
        if self.kind == "plain":
            return Curved(psi, first, second)
        if self.kind == "log":
            if not psi > 0.0:
                return Curved(-inf, np.zeros_like(first), np.zeros_like(second))
            g = first / psi
            return Curved(log(psi), g, second / psi - np.outer(g, g))
        rest = (1.0 - psi) * (1.0 + psi)
        if not rest > 0.0:
            return Curved(inf * float(np.sign(psi)), np.zeros_like(first), np.zeros_like(second))
        return Curved(atanh(psi), first / rest, second / rest + (2.0 * psi / rest**2) * np.outer(first, first))


class _OfEffects(Value):
    """A variance or a correlation of the random effects."""

    def __init__(self, name: str, blocks: EffectsBlocks, i: int, j: int, place: int, scale: float) -> None:
        self.name, self.blocks, self.i, self.j, self.place, self.scale = name, blocks, i, j, place, scale
        self.kind, self.root = ("log", True) if i == j else ("fisher", False)

    def natural(self, z: Array) -> float:
        G = self.blocks.matrix(z[: self.blocks.n_parameters])
        i, j = self.i, self.j
        if i == j:
            return float(np.sqrt(G[i, i]) * self.scale * np.exp(0.5 * z[-1]))
        size = float(np.sqrt(G[i, i] * G[j, j]))
        return float(G[i, j] / size) if size > 0.0 else float("nan")

    def estimate(self, fit: Fit) -> float:
        return float(sd_and_cor(fit.model.random.elements, fit.covariance[None])[0, self.place])

    def at(self, z: Array) -> Curved:
        k, n, i, j = self.blocks.n_parameters, len(z), self.i, self.j
        theta = z[:k]
        G, J = self.blocks.matrix(theta), self.blocks.jacobian(theta)

        def element(a: int, b: int) -> tuple[float, Array, Array]:
            unit = np.zeros_like(G)
            unit[a, b] += 0.5
            unit[b, a] += 0.5
            return float(G[a, b]), J[:, a, b], self.blocks.second(theta, unit)

        def widened(first: Array, second: Array) -> tuple[Array, Array]:
            g, H = np.zeros(n), np.zeros((n, n))
            g[:k], H[:k, :k] = first, second
            return g, H

        if i == j:
            value, first, second = element(i, i)
            if not value > 0.0:
                return Curved(-inf, np.zeros(n), np.zeros((n, n)))
            own = first / value
            g, H = widened(own, second / value - np.outer(own, own))
            g[-1] = 1.0
            return Curved(log(value) + float(z[-1]) + 2.0 * log(self.scale), g, H)
        u, du, d2u = element(i, j)
        half = 0.0
        dL, d2L = np.zeros(k), np.zeros((k, k))
        for a in (i, j):
            value, first, second = element(a, a)
            if not value > 0.0:
                return Curved(nan, np.zeros(n), np.zeros((n, n)))
            own = first / value
            half += 0.5 * log(value)
            dL += 0.5 * own
            d2L += 0.5 * (second / value - np.outer(own, own))
        e = exp(-half)
        mixed = np.outer(du, dL)
        d2 = e * (d2u - mixed - mixed.T - u * d2L + u * np.outer(dL, dL))
        return self.transformed(u * e, *widened(e * (du - u * dL), d2))


class _OfStructure(Value):
    """A natural parameter of a restricted covariance of random effects."""

    def __init__(self, name: str, part: EffectsStructure, span: slice, place: int, scale: float) -> None:
        self.name, self.part, self.span, self.place, self.scale = name, part, span, place, scale
        self.kind = _transform(name)

    def _sigma2(self, s: float) -> float:
        return self.scale**2 * exp(s)

    def natural(self, z: Array) -> float:
        return float(self.part.natural(z[self.span], self._sigma2(float(z[-1])))[self.place])

    def estimate(self, fit: Fit) -> float:
        assert fit.optimum.restricted is not None
        return float(self.part.natural(fit.optimum.restricted[self.span], fit.sigma2)[self.place])

    def _first(self, z: Array) -> Array:
        sigma2 = self._sigma2(float(z[-1]))
        own = self.part.natural_jacobian(z[self.span], sigma2)[self.place]
        out = np.zeros(len(z))
        out[self.span], out[-1] = own[:-1], own[-1] * sigma2
        return out

    def at(self, z: Array) -> Curved:
        second = np.zeros((len(z), len(z)))
        for a in (*range(self.span.start, self.span.stop), len(z) - 1):
            step = np.zeros(len(z))
            step[a] = APART
            second[a] = (self._first(z + step) - self._first(z - step)) / (2.0 * APART)
        return self.transformed(self.natural(z), self._first(z), 0.5 * (second + second.T))


class _OfResiduals(Value):
    """A natural parameter of structured residuals."""

    def __init__(self, name: str, own: Stratum, start: int, n_phi: int, place: int, whole: int, scale: float) -> None:
        self.name, self.own, self.start, self.n_phi = name, own, start, n_phi
        self.place, self.whole, self.scale = place, whole, scale
        self.kind = _transform(name)

    def _parts(self, z: Array) -> tuple[Array, float]:
        scale, inner = self.own.own(z[self.start : self.start + self.n_phi])
        return inner, scale * self.scale**2 * exp(float(z[-1]))

    def natural(self, z: Array) -> float:
        return float(self.own.structure.natural(*self._parts(z))[self.place])

    def estimate(self, fit: Fit) -> float:
        part = fit.model.residual
        assert part is not None
        return float(part.natural(fit.phi, fit.sigma2)[self.whole])

    def at(self, z: Array) -> Curved:
        inner, variance = self._parts(z)
        structure = self.own.structure
        unit = np.zeros(len(inner) + 1)
        unit[self.place] = 1.0
        jacobian = structure.natural_jacobian(inner, variance)[self.place]
        turn = self.own.to_own(self.n_phi, variance)
        n = len(z)
        places = np.append(np.arange(self.start, self.start + self.n_phi), n - 1)
        first, second = np.zeros(n), np.zeros((n, n))
        first[places] = jacobian @ turn
        inner_second = turn.T @ structure.natural_second(inner, variance, unit) @ turn
        # the variance is an exponential of its own coordinates
        inner_second += jacobian[-1] / variance * np.outer(turn[-1], turn[-1])
        second[np.ix_(places, places)] = inner_second
        return self.transformed(self.natural(z), first, second)


class _Sigma(Value):
    """The residual standard deviation, where residuals are independent."""

    name, kind, root = "sigma", "log", True

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def natural(self, z: Array) -> float:
        return self.scale * exp(0.5 * float(z[-1]))

    def estimate(self, fit: Fit) -> float:
        return fit.sigma

    def at(self, z: Array) -> Curved:
        g = np.zeros(len(z))
        g[-1] = 1.0
        return Curved(float(z[-1]) + 2.0 * log(self.scale), g, np.zeros((len(z), len(z))))


def _transform(name: str) -> Kind:
    kinds: dict[str, Kind] = {"var": "log", "sd": "log", "range": "log", "cor": "fisher"}
    return kinds.get(kind_of(name), "plain")


def reported(fit: Fit) -> list[Value]:
    """The variance parameters of a fit with structures, in the order of tables.

    Those of random effects are standard deviations and correlations, of restricted covariances their own parameters
    (but not of `fa0`, as loadings have no signs of their own), then those of residuals.
    """
    model = fit.model
    blocks, scale = blocks_of(model.structure), model.problem.scale
    out: list[Value] = []
    spans = zip(model.structure.blocks, blocks.parts, blocks.spans, model.term_names, strict=True)
    for block, part, (effects, own), term in spans:
        if block.structure not in FREE and not block.structure.startswith("fa0"):
            names = part.names(model.exog_re_names[effects], term)
            out += [_OfStructure(name, part, own, place, scale) for place, name in enumerate(names)]
            continue
        alike = block.structure == "fa0(1)"  # its correlations are 1 or -1
        for place, one in enumerate(model.random.elements):
            if effects.start <= one.i < effects.stop and not (alike and one.i != one.j):
                out.append(_OfEffects(one.name("sd"), blocks, one.i, one.j, place, scale))
    if model.residual is None:
        return [*out, _Sigma(scale)]
    of_residuals = residual_names(model.residual)
    whole = 0
    for stratum in model.residual.strata:
        for place in range(stratum.structure.n_parameters + 1):
            out.append(_OfResiduals(
                of_residuals[whole], stratum, blocks.n_parameters, model.residual.n_parameters, place, whole, scale
            ))  # fmt: skip
            whole += 1
    return out
