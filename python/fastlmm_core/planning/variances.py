"""Power of tests of variances: the likelihood ratio with and without a random effect, in each draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..covariance.elements import element_names, sd_and_cor
from ..errors import LMMError
from ..estimation.stated import moved
from ..inference.likelihood_ratio.random_effects import effects_of
from ..support.checks import number_array
from .studies import Studies

if TYPE_CHECKING:
    from ..estimation.model import Model
    from ..result import LMMResult

__all__ = ["given_sd", "is_variance", "sd_place", "variance_studies"]


def is_variance(test: Any) -> bool:
    """Whether a test is of a standard deviation, by its name."""
    return isinstance(test, str) and test.startswith("sd_") and "|" in test


def sd_place(model: Model, test: str) -> int:
    """Place of the standard deviation among the random effects.

    Raises
    ------
    LMMError
        For one that the model does not have, or of an effect that cannot be left out by itself.
    """
    elements = model.random.elements
    places = {e.name("sd"): e.i for e in elements if e.i == e.j}
    if test not in places:
        raise LMMError(f"test={test!r} is not a standard deviation of the model; there are {', '.join(places)}")
    alone = [effect for effect in effects_of(model, None) if effect.columns == (places[test],)]
    if not alone:
        names = [name for name, i in places.items() if any(e.columns == (i,) for e in effects_of(model, None))]
        raise LMMError(
            f"test={test!r}: this effect cannot be left out by itself (an intercept with slopes beside it, or one of "
            f"several columns of a factor){'; use ' + ', '.join(names) if names else ''}"
        )
    return places[test]


def given_sd(truth: LMMResult, test: str, effect: Any) -> LMMResult:
    """The model with the standard deviation at `effect`, the correlations as they are."""
    if effect is None:
        return truth
    j = sd_place(truth.model, test)
    value = np.atleast_1d(number_array(effect, "effect"))
    if value.shape != (1,) or not value[0] >= 0.0:
        raise LMMError(f"effect must be a standard deviation for {test}, a number that is not negative")
    old = float(np.sqrt(truth.covariance[j, j]))
    G = {name: block.copy() for name, block in truth.G.items()}
    for name, block in zip(truth.model.term_names, truth.model.structure.blocks, strict=True):
        if block.start <= j < block.stop:
            own = j - block.start
            scale = value[0] / old if old > 0.0 else 0.0
            G[name][own, :] *= scale
            G[name][:, own] *= scale
            if old == 0.0:
                G[name][own, own] = value[0] ** 2
    return moved(truth, None, G, None)


def variance_studies(
    truth: LMMResult, test: str, n_sim: int, seed: int, *, first: int, reml: bool, n_jobs: int | None,
    progress: bool | None,
) -> tuple[Studies, float]:  # fmt: skip
    """Draw responses, fit each with and without the effect; and the true standard deviation.

    The null distribution is that of `LMMResult.random_effect_test`, drawn once for all draws.
    """
    j = sd_place(truth.model, test)
    batch = truth.simulate_fit(n_sim, seed, reml=reml, n_jobs=n_jobs, progress=progress, first=first)
    name = next(effect.name for effect in effects_of(truth.model, None) if effect.columns == (j,))
    term = truth.model.exog_re_names[j]
    found = batch.random_effect_test(term, seed=seed)[name]
    elements = truth.model.random.elements
    column = element_names(elements).index(test)
    estimates = sd_and_cor(elements, batch.covariance)[:, [column]]
    good = batch.converged & np.isfinite(found.pvalues)
    return (
        Studies(np.where(good, found.pvalues, np.nan), good, batch.singular, estimates),
        float(np.sqrt(truth.covariance[j, j])),
    )
