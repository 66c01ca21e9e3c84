"""Kenward and Roger's moments of many fits on one design: what depends on theta, taken for many thetas.

Groups with the same Z_i'Z_i share everything but X, so that one factor is vectorised over responses; with several
factors each theta is an evaluation of the criterion.  The formulas are those of `information`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...covariance.directions import face_inverse_free, free_directions, null_projectors, theta_jacobian
from ...covariance.parameters import CovarianceStructure, vech_positions
from ...engines.one_factor.problem import one_factor
from ...support.blas_threads import one_blas_thread
from ...support.types import Array
from ..model import Model
from ..moments import Moments, adjusted, expected_information, reduced_traces
from .one_factor import shared_design

if TYPE_CHECKING:
    from ...kernels.hierarchies import CorrelatedBatch, FactorBatch
    from .several_factors import HierarchyDesign

__all__ = ["Observed", "Patterns", "moments_of_sums", "patterns_of"]


CHUNK_BYTES = 2**22
"""Size of the intermediate arrays over responses: what a processor's cache holds."""


class Observed(NamedTuple):
    """The observed information in theta: d r^2 / r^2 with the sign turned (n, k), inverse Hessian (n, k, k)."""

    shift: Array
    inverse: Array


class Patterns(Protocol):
    """What tests take from the design at many thetas."""

    nu: float
    apart: bool
    """Whether threads may take moments at the same time: they do not share one evaluation of the criterion."""

    def chunk(self) -> int:
        """Responses at a time."""

    def half(self, factors: Array) -> Array:
        """L_xx^-1 (n, r, r) at factors (n, q, q)."""

    def moments(self, factors: Array, edge: NDArray[np.bool_], observed: Observed | None = None) -> Moments:
        """Kenward and Roger's moments of n fits.

        Parameters
        ----------
        factors : (n, q, q) array
            Lambda in conditioned units.
        edge : (n,) bool array
            Where the expected information is taken along the covariance matrices of the rank found.
        observed : Observed, optional
            To be taken in place of the expected information.
        """


def patterns_of(model: Model) -> Patterns:
    """The patterns of a design."""
    if len(model.factors) == 1:
        return _OneFactor(model)
    design = shared_design(model)
    if hasattr(design, "moments"):
        return _FactorLanes(model, cast("FactorBatch | CorrelatedBatch", design))
    return _SeveralFactors(cast("HierarchyDesign", design))


def _moments(
    structure: CovarianceStructure, factors: Array, edge: NDArray[np.bool_], observed: Observed | None,
    found: Moments, traces: Array, sandwich: Callable[[Array], Array],
) -> Moments:  # fmt: skip
    """Finish moments, along the free directions of G^, that lack the inverse information.

    Parameters
    ----------
    found : Moments
        With the shift tr(P D_kV) / nu.
    traces : (n, d, d) array
        See `reduced_traces`.
    sandwich : callable
        See `adjusted`; for weights (n, d, d).
    """
    if observed is not None:
        jacobian = theta_jacobian(structure, factors)
        flat = found.slopes.reshape(*found.slopes.shape[:-2], found.slopes.shape[-1] ** 2)
        slopes = (jacobian @ flat).reshape(*jacobian.shape[:-1], *found.slopes.shape[-2:])
        found = found._replace(slopes=slopes, shift=observed.shift, inverse=observed.inverse)
        return adjusted(found, lambda weight: sandwich(np.swapaxes(jacobian, -1, -2) @ weight @ jacobian))
    information = expected_information(traces, found.slopes, found.shift, found.nu)
    inverse = np.empty_like(information)
    inverse[~edge] = np.linalg.inv(information[~edge])
    if edge.any():
        inverse[edge] = face_inverse_free(structure, information[edge], null_projectors(structure, factors[edge]))
    return adjusted(found._replace(inverse=inverse), sandwich)


def moments_of_sums(
    structure: CovarianceStructure, sums: tuple[Array, ...], nu: float | Array, factors: Array,
    edge: NDArray[np.bool_], observed: Observed | None,
) -> Moments:  # fmt: skip
    """Moments from the sums of n fits along the free directions of G^, of which there are d.

    Parameters
    ----------
    sums : tuple of arrays
        half (n, r, r), trace (n, d), square (n, pairs), cross (n, d, r, r), both (n, pairs, r, r): see `FactorBatch`.
    nu : float or (n,) array
    factors, edge, observed
        As for `Patterns.moments`.
    """
    half, trace, square, cross, both = sums
    turned = half.transpose(0, 2, 1)[:, None]
    slopes, both = half[:, None] @ cross @ turned, half[:, None] @ both @ turned
    d = trace.shape[1]
    lower, upper = vech_positions(d)
    pairs = square - 2.0 * np.trace(both, axis1=2, axis2=3)
    traces = np.empty((len(half), d, d))
    traces[:, lower, upper] = traces[:, upper, lower] = pairs
    shift = (trace - np.trace(slopes, axis1=2, axis2=3)) / np.asarray(nu)[..., None]

    def sandwich(weight: Array) -> Array:
        # each pair in both orders, of which one is the transpose of the other
        own = 0.5 * (weight[:, lower, upper] + weight[:, upper, lower]) * np.where(lower == upper, 0.5, 1.0)
        one: Array = np.einsum("np,npij->nij", own, both)
        return one + one.transpose(0, 2, 1)

    found = Moments(half, slopes, shift, np.empty(0), nu, None)
    return _moments(structure, factors, edge, observed, found, traces, sandwich)


class _OneFactor:
    """Sums over the groups of one factor."""

    apart = True

    def __init__(self, model: Model) -> None:
        problem = one_factor(model.problem)
        m, q, r = problem.m, model.structure.q, problem.rank
        packed, _ = kernels.factor_groups(problem.raw, problem.z_transform, problem.xy_transform)
        lines = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:m]
        labels = kernels.pattern_labels(packed, m, q)
        labels = np.arange(m) if labels is None else labels
        lines = lines[np.argsort(labels, kind="stable")]
        n_a = q * (q + 1) // 2
        cx = np.ascontiguousarray(lines[:, n_a:-1].reshape(m, q, r + 1)[:, :, :r])
        bounds = np.append(0, np.cumsum(np.bincount(labels))).astype(np.int64)
        columns, _, self.cx = kernels.pattern_bases(cx, bounds)
        self.owner = np.repeat(np.arange(len(bounds) - 1), np.diff(columns))
        self.counts = np.diff(bounds).astype(float)
        upper = np.triu_indices(q)
        self.R = np.zeros((len(bounds) - 1, q, q))
        self.R[:, upper[0], upper[1]] = lines[bounds[:-1], :n_a]
        self.within = kernels.unpack(problem.within[: r * (r + 1) // 2], r)
        self.structure = model.structure
        self.directions = kernels.unit_directions(q)[free_directions(model.structure)]
        self.nu = float(problem.n - r)

    def half(self, factors: Array) -> Array:
        """See `Patterns`."""
        return self._whitening(factors)[0]

    def chunk(self) -> int:
        """Responses whose intermediate arrays have about CHUNK_BYTES."""
        _, q, r = self.cx.shape
        per_response = len(self.cx) * q * (r + 1) * 2 * (len(self.directions) + 2) + len(self.R) * 8 * q**2
        return max(1, int(CHUNK_BYTES // (8 * per_response)))

    def _whitening(self, factors: Array) -> tuple[Array, Array, Array]:
        """L_xx^-1 (n, r, r), N by pattern (n, patterns, q, q), E_x by column (n, columns, q, r)."""
        U = self.R @ factors[:, None]
        inverse = np.linalg.inv(np.eye(U.shape[-1]) + U @ np.swapaxes(U, 2, 3))
        half_n = np.swapaxes(self.R, 1, 2) @ inverse
        N = half_n @ self.R
        solved = inverse[:, self.owner] @ self.cx
        H = self.within + np.einsum("cqi,ncqj->nij", self.cx, solved, optimize=True)
        E = np.swapaxes(self.R, 1, 2)[self.owner] @ solved
        return np.linalg.inv(np.linalg.cholesky(H)), N, E

    def moments(self, factors: Array, edge: NDArray[np.bool_], observed: Observed | None = None) -> Moments:
        """See `Patterns`."""
        half, N, E = self._whitening(factors)
        E = E @ np.swapaxes(half, 1, 2)[:, None]
        turned = np.einsum("kab,ncbi->nkcai", self.directions, E, optimize=True)
        slopes = np.einsum("ncai,nkcaj->nkij", E, turned, optimize=True)
        DN = np.einsum("kab,npbc->npkac", self.directions, N, optimize=True)
        plain = np.einsum("p,npkab,nplba->nkl", self.counts, DN, DN, optimize=True)
        across = N[:, None, self.owner] @ turned
        both = np.einsum("nkcai,nlcaj->nklij", turned, across, optimize=True)
        shift = np.einsum("p,npkaa->nk", self.counts, DN, optimize=True) - np.einsum("nkii->nk", slopes)
        found = Moments(half, slopes, shift / self.nu, np.empty(0), self.nu, None)
        return _moments(
            self.structure, factors, edge, observed, found, plain - 2.0 * np.einsum("nklii->nkl", both),
            lambda weight: np.asarray(np.einsum("nkl,nklij->nij", weight, both, optimize=True)),
        )  # fmt: skip


class _FactorLanes:
    """Several factors of independent effects, side by side."""

    apart = True

    def __init__(self, model: Model, batch: FactorBatch | CorrelatedBatch) -> None:
        self.batch, self.structure = batch, model.structure
        self.nu = float(model.problem.n - model.problem.rank)

    def chunk(self) -> int:
        """Responses whose intermediate arrays have about CHUNK_BYTES."""
        q, r = self.structure.q, self.batch.rank
        return max(8, int(CHUNK_BYTES // (8 * (r * r + 1) * (q * (3 * q + 5) + 1))))

    def half(self, factors: Array) -> Array:
        """See `Patterns`."""
        return self.batch.moments(self._theta(factors))[0]

    def _theta(self, factors: Array) -> Array:
        rows, columns = self.structure.positions
        return np.ascontiguousarray(factors[:, rows, columns])

    def moments(self, factors: Array, edge: NDArray[np.bool_], observed: Observed | None = None) -> Moments:
        """See `Patterns`."""
        sums = self.batch.moments(self._theta(factors))
        return moments_of_sums(self.structure, sums, self.nu, factors, edge, observed)


class _SeveralFactors:
    """Evaluations of the criterion, theta by theta."""

    apart = False

    def __init__(self, design: HierarchyDesign) -> None:
        self.worker = design.worker()
        self.structure = design.structure
        self.nu = float(design.problem.n - design.problem.rank)

    def chunk(self) -> int:
        """Responses at a time."""
        return 256

    def _at(self, factor: Array) -> Array:
        """L_xx^-1 at one factor."""
        criterion = self.worker.criterion
        criterion.reml = True
        criterion.evaluate(self.structure.theta(factor), 1)
        return np.asarray(np.linalg.inv(criterion.solution()[2]))

    def half(self, factors: Array) -> Array:
        """See `Patterns`."""
        with one_blas_thread():
            return np.array([self._at(factor) for factor in factors])

    def moments(self, factors: Array, edge: NDArray[np.bool_], observed: Observed | None = None) -> Moments:
        """See `Patterns`."""
        with one_blas_thread():
            each = [
                self._one(
                    factors[i : i + 1],
                    edge[i : i + 1],
                    None if observed is None else Observed(*(part[i : i + 1] for part in observed)),
                )
                for i in range(len(factors))
            ]
        half, slopes, shift, inverse, adjustment = (
            np.concatenate(part)
            for part in zip(*((m.half, m.slopes, m.shift, m.inverse, m.adjustment) for m in each), strict=True)
        )
        return Moments(half, slopes, shift, inverse, self.nu, adjustment)

    def _one(self, factor: Array, edge: NDArray[np.bool_], observed: Observed | None) -> Moments:
        """A stack of one."""
        criterion, free = self.worker.criterion, free_directions(self.structure)
        lower, upper = vech_positions(self.structure.q)
        half = self._at(factor[0])
        r = len(half)
        slopes = half @ criterion.cross()[:, :r, :r] @ half.T
        shift = criterion.precision()[lower, upper] * (2.0 - (lower == upper))
        shift = (shift - np.trace(slopes, axis1=1, axis2=2)) / self.nu
        square = np.ix_(free, free)
        traces = reduced_traces(criterion, half)[square]

        def sandwich(weight: Array) -> Array:
            wide = np.zeros((len(lower), len(lower)))
            wide[square] = weight[0]
            return np.asarray(half @ criterion.sandwich(wide)[:r, :r] @ half.T)[None]

        found = Moments(half[None], slopes[None, free], shift[None, free], np.empty(0), self.nu, None)
        return _moments(self.structure, factor, edge, observed, found, traces[None], sandwich)
