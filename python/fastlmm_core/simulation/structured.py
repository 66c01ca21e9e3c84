"""What a bootstrap needs to know of fits with structured residuals: all parameters, draws, refits of clusters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..covariance.elements import element_names, sd_and_cor
from ..estimation.fit import Fit
from ..estimation.statements import residual_names
from ..estimation.structured_effects import effects
from ..estimation.whitening import by_residuals
from ..support.types import Array
from .draws import Draw, correlated
from .resampling import clusters_of, refitted, rescaled

__all__ = ["Parameters", "conditional", "effect_pools", "residual", "without_clusters"]


class Parameters:
    """All parameters of fits with structured residuals: fixed effects, those of the random effects, of the residuals.

    Parameters
    ----------
    result : Fit

    Attributes
    ----------
    names, kinds : tuple of str
        A kind is "fixed", "sd", "cor" or "residual".
    """

    def __init__(self, result: Fit) -> None:
        model = result.model
        part = model.residual
        assert part is not None
        found = model.random.elements
        self.kept = model.problem.kept
        of_g = element_names(found)[: len(found)]
        of_r = residual_names(part)
        self.names = (*(model.exog_names[j] for j in self.kept), *of_g, *of_r)
        self.kinds = (
            *("fixed" for _ in self.kept),
            *("sd" if one.i == one.j else "cor" for one in found),
            *("residual" for _ in of_r),
        )

    def values(self, fit: Fit) -> Array:
        """Of one fit (k,)."""
        part = fit.model.residual
        assert part is not None
        of_g = sd_and_cor(fit.model.random.elements, fit.covariance[None])[0]
        return np.concatenate([fit.beta[self.kept], of_g, part.natural(fit.phi, fit.sigma2)])

    def errors(self, fit: Fit) -> Array:
        """Standard errors (k,), of the fixed effects."""
        out = np.full(len(self.names), np.nan)
        out[: len(self.kept)] = np.sqrt(np.diag(fit.cov))[self.kept]
        return out


def conditional(result: Fit) -> Draw:
    """Draws with new residuals, the BLUPs kept."""
    model = result.model
    assert model.residual is not None
    mean, correlate = result.fitted_mean, correlated(model.residual, result.phi)
    scale = result.sigma if model.weights is None else result.sigma / np.sqrt(model.weights)

    def draw(rng: np.random.Generator, count: int) -> Array:
        y = rng.standard_normal((count, model.nobs))
        correlate(y)
        return np.asarray(mean + scale * y)

    return draw


def effect_pools(result: Fit) -> list[Array]:
    """Random effects of each factor (m_f, q_f) from which to draw: of mean 0 and the estimated covariance."""
    model = result.model
    q = model.structure.q
    scores = effects(model, result.engine, np.eye(q), result.marginal_rest)
    out = []
    for e_i, f in zip(scores, model.factors, strict=True):
        factor = result.relative_factor[f.columns, f.columns]
        out.append(result.sigma * rescaled(e_i @ factor, factor) if len(factor) else np.zeros((f.grouping.m, 0)))
    return out


def residual(result: Fit) -> Draw:
    """BLUPs and whitened residuals, centred and rescaled, drawn with replacement; residuals correlated again."""
    model = result.model
    assert model.residual is not None
    pools = [
        (b, f.grouping.index, model.exog_re[:, f.columns])
        for b, f in zip(effect_pools(result), model.factors, strict=True)
    ]
    e = by_residuals(result, result.rest[:, None])[:, 0]
    e = e - e.mean()
    e *= result.sigma / np.sqrt(np.mean(e**2))
    correlate = correlated(model.residual, result.phi)
    root = model.root_weights
    mean = result.population_mean

    def draw(rng: np.random.Generator, count: int) -> Array:
        y = e[rng.integers(0, model.nobs, (count, model.nobs))]
        correlate(y)
        y /= root
        for b, index, z in pools:
            u = b[rng.integers(0, len(b), (count, len(b)))]
            for j in range(z.shape[1]):
                y += u[:, :, j].take(index, axis=1) * z[:, j]
        return np.asarray(y + mean)

    return draw


def without_clusters(result: Fit) -> Array:
    """All parameters without each of the independent clusters (m, k); NaN where they cannot be fitted."""
    clusters, m = clusters_of(result, "method='bca' needs deletions of independent groups")
    own = Parameters(result)
    out = np.full((m, len(own.names)), np.nan)
    fits: Iterator[Fit | None] = (refitted(clusters, row) for row in 1 - np.eye(m, dtype=np.int64))
    for row, fit in zip(out, fits, strict=True):
        if fit is not None:
            row[:] = own.values(fit)
    return out
