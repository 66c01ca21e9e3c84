"""What grouping does to the precision of estimates: design effects and effective sample sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..estimation.whitening import whitened
from ..support.arguments import checked
from ..support.display import Cells, Shown
from ..support.types import Array
from .group_sums import conditional_covariances, conditioned_rows, fixed_rows, grams_of, sums_of
from .marginal import icc

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["DesignEffect", "design_effect", "effective_sample_size"]


@checked
@dataclass(frozen=True, repr=False)
class DesignEffect(Shown):
    """By what factor grouping multiplies the variances of estimates.

    Attributes
    ----------
    icc : dict of str to float
        By grouping factor: the intraclass correlation, averaged over the observations.
    mean_size : dict of str to float
        Observations per group.
    kish : dict of str to float
        1 + (mean_size - 1) icc (Kish 1965, Survey Sampling, ch. 5): exact for the mean where there is one factor,
        groups are of one size and only the intercept varies.
    mean : float
        1'V1 / tr V: variance of the mean of all observations against independent ones with the same variances.
    fixed_effects : (p,) Series, dict or array
        Diagonals of (X'V^-1 X)^-1 over those of (X'D^-1 X)^-1 with D = diag(V): above 1 for what is
        compared between groups, below 1 for what is compared within them.
    effective_sample_size : float
        See `effective_sample_size`.
    """

    icc: dict[str, float]
    mean_size: dict[str, float]
    kish: dict[str, float]
    mean: float
    fixed_effects: Any
    effective_sample_size: float

    def _shown(self) -> Iterator[str | Cells]:
        rows = [
            [name, f"{self.mean_size[name]:.1f}", f"{icc:.3f}", f"{self.kish[name]:.3f}"]
            for name, icc in self.icc.items()
        ]
        yield f"Design effect of the mean {self.mean:.3f}, effective sample size {self.effective_sample_size:.1f}"
        yield Cells(["", "Rows per level", "ICC", "Kish"], rows)
        ratios = self.fixed_effects
        if hasattr(ratios, "items"):
            yield Cells(["", "Variance ratio"], [[str(name), f"{ratio:.3f}"] for name, ratio in ratios.items()])
        else:
            yield "Variance ratios of the fixed effects: " + ", ".join(f"{ratio:.3f}" for ratio in ratios)


def _variances(result: Fit) -> Array:
    """Diagonal of V / sigma^2 (n,)."""
    model = result.model
    if model.residual is not None:
        out = result.residual_variances / result.sigma2
    else:
        out = np.ones(model.nobs) if model.weights is None else 1.0 / model.weights
    for factor in model.factors if model.structure.q else ():
        rows, _ = conditioned_rows(model, factor)
        turned = rows @ result.optimum.factor[factor.columns, factor.columns]
        out += np.einsum("ij,ij->i", turned, turned)
    return out


def effective_sample_size(result: Fit) -> float:
    """How many independent observations tell as much of a common mean as the correlated ones do.

    1'R^-1 1 with R the marginal correlation matrix, a sum over groups where there is one grouping factor (Faes et al.
    2009, American Statistician 63, 389-399).

    Parameters
    ----------
    result : LMMResult

    Returns
    -------
    float

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.design_effect import effective_sample_size
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> round(effective_sample_size(fit), 1)
    31.4
    """
    model, weights = result.model, result.model.weights
    sd = np.sqrt(_variances(result))
    if model.residual is not None:
        return float(np.sum(whitened(result, result.sigma * sd) ** 2))
    weighted = sd if weights is None else sd * weights
    if len(model.factors) > 1:
        return float(sd @ weighted - _crossed_part(result, weighted))
    rows, _ = conditioned_rows(model, model.factors[0])
    cross = sums_of(rows * weighted[:, None], model.grouping)
    inner = conditional_covariances(result.optimum.factor, grams_of(rows, weights, model.grouping))
    return float(sd @ weighted - np.einsum("ij,ijk,ik->", cross, inner, cross))


def _crossed_part(result: Fit, weighted: Array) -> float:
    """c'(I + Lambda'Z'WZLambda)^-1 c, c = Lambda'Z'W s, over all levels of several factors."""
    from scipy.sparse import csc_array, diags_array, eye_array, hstack
    from scipy.sparse.linalg import spsolve

    model = result.model
    parts = []
    for factor in model.factors:
        rows, _ = conditioned_rows(model, factor)
        turned = rows @ result.optimum.factor[factor.columns, factor.columns]
        m, q = len(factor.grouping.labels), turned.shape[1]
        places = factor.grouping.index[:, None] * q + np.arange(q)
        indices = (np.repeat(np.arange(model.nobs), q), places.ravel())
        parts.append(csc_array((turned.ravel(), indices), shape=(model.nobs, m * q)))
    Z = hstack(parts, format="csc")
    root = model.root_weights
    scaled: Any = diags_array(root) @ Z
    cross = Z.T @ weighted
    solved: Any = spsolve(csc_array(eye_array(Z.shape[1]) + scaled.T @ scaled), cross)
    return float(cross @ solved)


def _of_residuals(result: Fit) -> float:
    """Variance of the sum of all residuals, relative to sigma^2."""
    model, part = result.model, result.model.residual
    if part is None:
        return float(model.nobs) if model.weights is None else float(np.sum(1.0 / model.weights))
    root = np.ones(model.nobs) if model.weights is None else 1.0 / np.sqrt(model.weights)
    out = 0.0
    for own, where, members in part.alike():
        mine = root[members]
        out += float(np.sum((mine @ own.matrix(result.phi, where)) * mine))
    return out


def design_effect(result: Fit) -> DesignEffect:
    """Design effects of the grouping, for the mean and for each fixed effect.

    Parameters
    ----------
    result : LMMResult

    Returns
    -------
    DesignEffect
    """
    model, problem = result.model, result.model.problem
    variances = _variances(result)
    of_sum = _of_residuals(result)
    for factor in model.factors if model.structure.q else ():
        rows, _ = conditioned_rows(model, factor)
        of_sum += float(
            np.sum((sums_of(rows, factor.grouping) @ result.optimum.factor[factor.columns, factor.columns]) ** 2)
        )
    scaled = fixed_rows(model) / np.sqrt(variances)[:, None]
    root = np.asarray(np.linalg.qr(scaled, mode="r"), dtype=np.float64)
    half = np.linalg.solve(root.T, problem.x_map.T)
    independent = result.sigma2 * np.sum(half**2, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.diag(result.cov) / independent
    found = icc(result) if model.structure.q else {}
    shares = dict(found) if isinstance(found, dict) else {model.grouping.name: float(found)}
    size = {f.grouping.name: model.nobs / len(f.grouping.labels) for f in model.factors}
    return DesignEffect(
        icc=shares,
        mean_size=size,
        kish={name: 1.0 + (size[name] - 1.0) * shares[name] for name in shares},
        mean=of_sum / float(variances.sum()),
        fixed_effects=result.model.labelled(ratio),
        effective_sample_size=effective_sample_size(result),
    )
