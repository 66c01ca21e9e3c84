"""Parameters as callers state them: checked, and in the order and form that fits have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LMMError
from ..support.checks import float_array, number_array
from ..support.types import Array

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from ..covariance.residual.structure import ResidualStructure
    from ..design.residual import ResidualPart

__all__ = [
    "coefficients",
    "covariance_factor",
    "refuse_other_scale",
    "residual_names",
    "residual_phi",
    "residual_variance",
]


FLAT = 1e-15
"""Eigenvalue of correlations, relative to the largest, that is what rounding leaves of none."""


def coefficients(params: Any, names: tuple[str, ...], before: Array | None = None, argument: str = "params") -> Array:
    """Values of all coefficients (p,), by name or in order.

    Parameters
    ----------
    params : mapping or (p,) array
    names : tuple of str
    before : (p,) array, optional
        Values of those that a mapping does not name; without them it must name all.
    argument : str
        What messages call `params`.

    Raises
    ------
    LMMError
        Names the coefficients that are missing or unknown.
    """
    kind = "the coefficients of this design" if argument == "params" else "the parameters of the residuals"
    if hasattr(params, "keys"):
        given = dict(params)
        for name in given:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"they are {', '.join(map(repr, names))}"
                raise LMMError(f"{argument} names {name!r}, which is not among {kind}; {hint}")
        absent = [name for name in names if name not in given]
        if absent and before is None:
            raise LMMError(f"{argument} gives no value for {', '.join(map(repr, absent))}; state all of {kind}")
        params = [given[name] if before is None or name in given else before[i] for i, name in enumerate(names)]
    if before is not None and np.isnan(before).any():
        # columns that the fit had dropped have no coefficient, then and now
        loose = float_array(params, argument, 1)
        if loose.shape == before.shape:
            lost = np.isnan(before) & np.isnan(loose)
            return np.where(lost, np.nan, number_array(np.where(lost, 0.0, loose), argument))
    values = number_array(params, argument)
    if values.shape != (len(names),):
        raise LMMError(
            f"{argument} must hold {len(names)} values, for {', '.join(map(repr, names))}, not {values.size}"
        )
    return values


def residual_variance(sigma2: Any) -> float:
    """A residual variance, which must be positive."""
    variance = number_array(sigma2, "sigma2")
    if variance.ndim or not variance > 0.0:
        raise LMMError(f"sigma2={sigma2!r} must be a positive number: the residual variance")
    return float(variance)


def refuse_other_scale(part: ResidualPart | None, sigma2: Any, R: Any) -> None:
    """Refuse sigma2 where residuals have a structure, and R where they have none."""
    if part is None and R is not None:
        raise LMMError("R is for structured residuals (residual=); state the residual variance as sigma2")
    if part is not None and sigma2 is not None:
        raise LMMError(f"sigma2 is for independent residuals; state the parameters of {part.term} as R")


def residual_names(part: ResidualPart) -> tuple[str, ...]:
    """Names of the natural parameters of all strata."""
    names: list[str] = []
    for own in part.strata:
        inner = own.structure.names(part.labels, part.subject.name)
        names += [f"{name}[{own.label}]" if own.label else name for name in inner]
    return tuple(names)


def residual_phi(part: ResidualPart, R: Any, before: tuple[Array, float] | None = None) -> tuple[Array, float]:
    """Phi and sigma^2 of structured residuals, from what a caller states.

    Parameters
    ----------
    part : ResidualPart
    R : mapping of parameter to value, (k,) array in the order of their names, or (m, m) array
        Natural parameters, as `LMMResult.residual_parameters` has them; for an unstructured matrix the matrix.
    before : (phi, sigma2), optional
        Those that a mapping does not name stay as they are; without them it must name all.

    Raises
    ------
    LMMError
        For other names, or values of which there is no such covariance.
    """
    names = residual_names(part)
    counts = [own.structure.n_parameters + 1 for own in part.strata]
    known = None if before is None else _natural(part, *before)
    if hasattr(R, "keys") or np.ndim(R) < 2:
        psi = coefficients(R, names, known, "R")
    else:
        psi = _entries(part, number_array(R, "R"))
    phi = np.empty(part.n_parameters)
    first, at = 1.0, 0
    for own, count in zip(part.strata, counts, strict=True):
        mine = psi[at : at + count]
        inner, variance = _member(own.structure, mine)
        if inner is None:
            shown = ", ".join(f"{name}={value:g}" for name, value in zip(names[at : at + count], mine, strict=True))
            raise LMMError(
                f"R: there is no covariance {part.name} with {shown}; variances are positive, correlations within "
                "their limits"
            )
        if own.scaled:
            phi[own.start] = np.log(variance / first)
        else:
            first = variance
        phi[own.start + own.scaled : own.stop] = inner
        at += count
    return phi, first


def _member(structure: ResidualStructure, psi: Array) -> tuple[Array | None, float]:
    """Phi and sigma^2 of natural parameters, None where no member of the structure has them."""
    try:
        with np.errstate(all="ignore"):
            phi, sigma2 = structure.from_natural(psi)
            back = structure.natural(phi, sigma2)
    except np.linalg.LinAlgError:
        return None, 1.0
    fine = sigma2 > 0.0 and np.isfinite(phi).all() and np.allclose(back, psi, rtol=1e-6, atol=1e-9)
    return (phi, sigma2) if fine else (None, 1.0)


def _natural(part: ResidualPart, phi: Array, sigma2: float) -> Array:
    found = []
    for own in part.strata:
        scale, inner = own.own(phi)
        found.append(own.structure.natural(inner, scale * sigma2))
    return np.concatenate(found)


def _entries(part: ResidualPart, matrix: Array) -> Array:
    """Variances and covariances of an unstructured matrix, in the order of their names."""
    m = len(part.labels)
    if part.name != "us" or len(part.strata) > 1:
        raise LMMError(f"R must give the parameters of {part.term}: {', '.join(residual_names(part))}")
    if matrix.shape != (m, m) or np.abs(matrix - matrix.T).max() > 1e-8 * np.abs(matrix).max():
        raise LMMError(f"R must be a symmetric ({m}, {m}) matrix, for {part.time} {', '.join(part.labels)}")
    rows, columns = np.triu_indices(m)
    return matrix[columns, rows]


def _is_spread(value: Any) -> bool:
    return hasattr(value, "keys") and "sd" in value and set(value) <= {"sd", "corr"}


def _of_spread(given: Any, name: str) -> Array:
    """A covariance matrix from standard deviations and correlations."""
    sd = np.atleast_1d(number_array(given["sd"], f"{name}['sd']"))
    corr = number_array(given.get("corr", 0.0), f"{name}['corr']")
    if sd.ndim > 1 or (sd < 0.0).any():
        raise LMMError(f"{name}['sd'] must hold standard deviations, one for each random effect and none below 0")
    if corr.ndim == 0:
        if corr and len(sd) != 2:
            raise LMMError(
                f"{name}['corr'] must be a ({len(sd)}, {len(sd)}) matrix; a number is the correlation of two"
            )
        corr = np.where(np.eye(len(sd)) > 0.0, 1.0, corr)
    if corr.shape != (len(sd), len(sd)) or np.abs(np.diag(corr) - 1.0).max() > 1e-8:
        raise LMMError(f"{name}['corr'] must be a ({len(sd)}, {len(sd)}) matrix with ones on its diagonal")
    return np.asarray(np.outer(sd, sd) * corr)


def covariance_factor(
    G: Any, structure: CovarianceStructure, terms: tuple[str, ...], before: Mapping[str, Array] | None = None
) -> Array:
    """Lower triangular L with L L' = G, which is checked against the structure.

    Parameters
    ----------
    G : (q, q) array, number, or mapping of term to array
    structure : CovarianceStructure
    terms : tuple of str
        Names of the terms, one per block.
    before : mapping of term to array, optional
        The matrices of terms that a mapping does not name; without them it must name all.

    Raises
    ------
    LMMError
        For what is no covariance matrix of these random effects.
    """
    q = structure.q
    if q == 0 and G is None:
        return np.zeros((0, 0))
    if _is_spread(G):
        G = _of_spread(G, "G")
    places = {name: slice(block.start, block.stop) for name, block in zip(terms, structure.blocks, strict=True)}
    if hasattr(G, "keys"):
        if set(G) - set(places) or (before is None and set(G) != set(places)):
            raise LMMError(f"G has the terms {', '.join(map(repr, G))}; this design has {', '.join(map(repr, places))}")
        whole = np.zeros((q, q))
        for name, place in places.items():
            value = G[name] if before is None or name in G else before[name]
            if _is_spread(value):
                value = _of_spread(value, f"G[{name!r}]")
            part, size = np.atleast_2d(number_array(value, f"G[{name!r}]")), place.stop - place.start
            if part.shape != (size, size):
                raise LMMError(f"G[{name!r}] must be a ({size}, {size}) matrix, not of shape {part.shape}")
            whole[place, place] = part
    else:
        whole = np.atleast_2d(number_array(G, "G"))
    if whole.shape != (q, q):
        raise LMMError(f"G must be a ({q}, {q}) matrix, one row per random effect, not of shape {whole.shape}")
    sd = np.sqrt(np.maximum(np.diag(whole), 0.0))
    # on the scale of correlations units do not matter
    unit = np.where(sd > 0.0, sd, 1.0)
    corr = whole / np.outer(unit, unit)
    if np.abs(corr - corr.T).max() > 1e-8:
        raise LMMError("G is not symmetric")
    if (np.diag(whole) < 0.0).any() or np.linalg.eigvalsh(corr).min() < -1e-8:
        raise LMMError("G is not positive semidefinite: check its variances, and that no correlation is beyond 1")
    free = np.zeros((q, q), dtype=bool)
    free[structure.positions] = True
    if corr[~(free | free.T)].any():
        raise LMMError("G has covariances between random effects that the formula makes independent; set them to 0")
    factor = np.zeros((q, q))
    for block in structure.blocks:
        place = slice(block.start, block.stop)
        values, vectors = np.linalg.eigh(corr[place, place])
        # what rounding leaves of a correlation of 1 is none
        values[values < FLAT * values[-1]] = 0.0
        half = vectors * np.sqrt(values) if block.correlated else np.eye(len(values))
        factor[place, place] = sd[place, None] * half
    return structure.canonical(factor)
