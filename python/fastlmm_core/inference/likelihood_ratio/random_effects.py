"""Is each random effect needed?"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ...covariance.parameters import FREE
from ...design.terms import RandomPart, Term, no_random_part, random_part
from ...errors import LMMError
from ...estimation.model import Model
from ...simulation.draws import draws, parametric, simulate_fit, stream_size
from ...support.arguments import checked
from ...support.seeds import Seed, generator_of, key_of
from ...support.types import Array
from .compare import Null, NullWanted, beyond_rounding, check_null, moved, null_test, tested, warnings
from .nesting import nest, orthonormal
from .null_distributions import NullTest, counted, uncertain
from .table import Comparison, Row, information_criteria

if TYPE_CHECKING:
    from ...design.design import Design
    from ...estimation.fit import Fit

__all__ = ["effects_of", "kept_effects", "random_effect_test", "without"]


@dataclass(frozen=True)
class _Effect:
    """Random effects that are tested together."""

    name: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class _LinearNull:
    """The linear model without random effects, as a source of responses."""

    model: Model
    sigma2: float
    relative_factor: Array
    population_mean: Array

    @property
    def phi(self) -> Array:
        """Parameters of a residual structure: there is none."""
        return np.zeros(0)


@checked
def random_effect_test(
    result: Fit,
    term: str | None = None,
    *,
    null: Null = "auto",
    n_sim: int | None = None,
    seed: Seed = None,
) -> Comparison:
    """Likelihood ratio tests of the random effects, each left out in turn with its covariances.

    A random intercept that has slopes beside it is not tested, as its variance depends on the origin of their
    covariates.  The columns of one categorical covariate are tested together.

    Parameters
    ----------
    result : LMMResult
        REML gives restricted likelihood ratio tests.
    term : str, optional
        A random effect, or the grouping factor or term for all its effects together; by default each effect that can be
        tested.
    null : {"auto", "chi2", "mixture", "exact", "bootstrap"}
        Null distribution, see `compare`, which gives the same test of the same variance.
    n_sim : int, optional
        Draws of "exact" and of mixtures without closed form, by default 100,000, or responses of "bootstrap", by
        default 10,000.
    seed : int, sequence of int, SeedSequence or Generator, optional

    Returns
    -------
    Comparison
        The model first, then each model without one of the effects, with the test of that effect.

    Raises
    ------
    LMMError
        For an unknown term or null distribution, or one that does not apply.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> print(flc.random_effect_test(fit))
    Tests of random effects, REML
    <BLANKLINE>
    1  all random effects
    2  without Days | Subject
    <BLANKLINE>
       Parameters      AIC     AICc      BIC   logLik  Deviance    LRT  df       p
    1           6  1755.63  1756.11  1774.79  -871.81   1743.63
    2           4  1794.47  1794.69  1807.24  -893.23   1786.47  42.84   2  <0.001
    <BLANKLINE>
    Null distributions
    2  0.5 chi2(1) + 0.5 chi2(2)
    """
    result.require_estimates("random_effect_test", "fit the response: result.model.fit()")
    result.model.needs_rows_to_refit("random_effect_test()")
    wanted = check_null(null, n_sim, seed)
    model = result.model
    rows = [information_criteria("all random effects", result.n_parameters, result.criterion, result.nobs)]
    fits = []
    for effect in effects_of(model, term):
        keep = [j for j in range(model.structure.q) if j not in effect.columns]
        name = f"without {effect.name}"
        if keep or model.residual is not None:
            smaller = result.again(without(model, keep))
            row = information_criteria(name, smaller.n_parameters, smaller.criterion, result.nobs)
            names = f"the model {name}", "the model with it"
            row = moved(tested(rows[0], row, result, smaller, names, wanted), row)
            fits.append((f"the model {name}", smaller))
        else:
            row = _against_linear(result, name, wanted)
        rows.append(row)
    return Comparison(
        f"Tests of random effects, {'REML' if result.reml else 'maximum likelihood'}",
        tuple(rows), tuple(warnings([*fits, ("the model", result)])), result.reml, model.library,
    )  # fmt: skip


def effects_of(model: Model, term: str | None) -> list[_Effect]:
    """The random effects that are tested together, by term or those of one term."""
    names = model.exog_re_names
    tested: list[_Effect] = []
    known: set[str] = set()
    for label, block in zip(model.term_names, model.structure.blocks, strict=True):
        places = range(block.start, block.stop)
        together: dict[str, list[int]] = {}
        for j in places:
            # the columns of a categorical covariate are named covariate[level]
            together.setdefault(re.sub(r"\[.*?\]", "", names[j]), []).append(j)
        if block.structure not in FREE:
            # a structure is of all its effects
            together = {" + ".join(together): list(places)}
        known |= {label, *together}
        if term == label:
            return [_Effect(f"({' + '.join(together)} | {label})", tuple(places))]
        for name, columns in together.items():
            constant = len(columns) == 1 and np.ptp(model.exog_re[:, columns[0]]) == 0.0
            marginal = block.correlated and constant and len(together) > 1
            if (term is None and not marginal) or term == name:
                tested.append(_Effect(f"{name} | {label}", tuple(columns)))
    for factor in model.factors:
        if term == factor.grouping.name:
            return [_Effect(f"all effects of {term}", tuple(range(factor.start, factor.stop)))]
    if not tested:
        if not known:
            raise LMMError("the model has no random effects, of which this is a test")
        raise LMMError(f"term={term!r} is not among the random effects; use one of {', '.join(sorted(known))}")
    return tested


def without(model: Model, keep: list[int]) -> Model:
    """The model with these random effects only."""
    if not keep:
        assert model.residual is not None
        none = no_random_part(model.residual.subject, model.nobs)
        return model.of(model.design.with_random(none), model.endog)
    return model.of(model.design.with_random(kept_effects(model.design, keep)), model.endog)


def kept_effects(design: Design, keep: list[int]) -> RandomPart:
    """The random part of a design with these effects only, one or more."""
    terms = []
    for block in design.structure.blocks:
        columns = [j for j in keep if block.start <= j < block.stop]
        if columns:
            codes = design.factor_of(block).grouping.codes
            names = tuple(design.exog_re_names[j] for j in columns)
            terms.append(Term(codes.name, codes, design.exog_re[:, columns], names, block.structure))
    return random_part(terms)


def _against_linear(result: Fit, name: str, wanted: NullWanted) -> Row:
    """The test of all random effects against the linear model."""
    model, null = result.model, wanted.null
    nesting = nest(None, model)
    if isinstance(nesting, str):
        raise LMMError(f"the random effects cannot be tested: {nesting}")
    criterion = model.evaluate(np.zeros(model.structure.n_parameters), reml=result.reml).value
    statistic = beyond_rounding(criterion - result.criterion, result.criterion)
    error = 0.0 if result.optimum.monte_carlo is None else result.optimum.monte_carlo.criterion
    found: NullTest
    row = information_criteria(name, model.problem.rank + (model.sigma is None), criterion, result.nobs)
    if null == "auto" and nesting.undetermined:
        why = f"correlations of {', '.join(nesting.undetermined)} are not determined where the variances are zero"
        return replace(row, statistic=statistic, df=nesting.df, null=f"No test: {why}; use null='bootstrap'.")
    if null == "bootstrap":
        found = _bootstrap_linear(statistic, result, criterion, wanted.n_sim, wanted.seed)
    else:
        test = partial(null_test, nesting=nesting, large=model, factor=None, reml=result.reml, null=null,
                       n_sim=wanted.n_sim, seed=wanted.seed)  # fmt: skip
        found = uncertain(test, statistic, error)
    return replace(
        row, statistic=statistic, df=nesting.df, pvalue=found.pvalue, p_std_error=found.p_std_error, null=found.text,
        statistic_std_error=error,
    )  # fmt: skip


def _bootstrap_linear(statistic: float, result: Fit, criterion: float, n_sim: int, seed: Seed) -> NullTest:
    """Parametric bootstrap under the linear model, whose criterion is a multiple of log RSS but for a constant."""
    model = result.model
    model.needs_unknown_variance("null='bootstrap' against the model without random effects", "use null='mixture'")
    n, rank = model.nobs, model.problem.rank
    root = model.root_weights
    Q = orthonormal(model.exog[:, model.problem.kept], model.weights)
    base = result.population_mean  # taken out first: a large mean costs digits

    def log_rss(Y: Array) -> Array:
        scaled = (Y - base) * root
        scaled -= (scaled @ Q) @ Q.T
        return np.asarray(np.log(np.einsum("ij,ij->i", scaled, scaled)))

    nu = n - rank if result.reml else n
    observed = float(log_rss(model.endog[None])[0])
    q = model.structure.q
    source = _LinearNull(model, float(np.exp(observed) / (n - rank)), np.zeros((q, q)), base)
    key = int(generator_of(seed).integers(2**62))
    fits = simulate_fit(source, n_sim, key, reml=result.reml)
    drawing = parametric(source)
    blocks = draws(drawing, n_sim, key_of(key), stream_size(drawing, n))
    under = criterion + nu * (np.concatenate([log_rss(block()) for block in blocks]) - observed)
    good = fits.converged
    text = f"parametric bootstrap of {int(good.sum())} responses"
    return counted(statistic, (under - fits.criterion)[good], text)
