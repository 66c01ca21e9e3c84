"""Likelihood ratio tests of many responses: null distributions are those of the design, and are drawn once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...estimation.many.batch_fit import BatchFit
from ...estimation.many.pieces import fit_drawn
from ...estimation.model import Model
from ...simulation.nested import SeenAgain, drawn_log_rss, seen_by
from ...support.arguments import checked
from ...support.display import LINES, Cells, Shown, first_lines
from ...support.distributions import chi2_tail
from ...support.seeds import Seed, generator_of
from ...support.text_tables import p_value_cell
from ...support.types import Array
from ...tables.rows import FitLabels
from ..false_discoveries import false_discovery_rates
from .compare import NOTHING, Null, NullWanted, check_null, null_test
from .exact import draw, spectrum
from .nesting import Nesting, nest, orthonormal
from .null_distributions import one_variance
from .random_effects import effects_of, without

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BatchComparison", "compare", "random_effect_test"]


@checked
@dataclass(frozen=True, repr=False)
class BatchComparison(Shown):
    """Likelihood ratio test of two models for every response.

    Attributes
    ----------
    name : str
        What is tested.
    statistic : (n_responses,) array
        Difference of the criteria; NaN where one of the fits is not certified.
    df : int or (n_responses,) int array
        Parameters added; an array where each response has a design of its own, and some lack columns of X.
    pvalues, p_std_error : (n_responses,) arrays
        And their Monte Carlo standard errors, 0 where nothing was simulated.
    null : str
        The null distribution.
    """

    name: str
    statistic: Array
    df: Any
    pvalues: Array
    p_std_error: Array
    null: str
    _labels: FitLabels = field(repr=False)

    def __len__(self) -> int:
        return len(self.statistic)

    def fdr(self, method: str = "bh") -> Array:
        """p-values adjusted for the number of responses (n_responses,); see `BatchTest.fdr`."""
        return false_discovery_rates(self.pvalues, method)

    def to_frame(self) -> Any:
        """One row per response: statistic, df, p_value, fdr (by "bh")."""
        columns = {
            "statistic": self.statistic.copy(), "df": np.broadcast_to(self.df, len(self)).copy(),
            "p_value": self.pvalues.copy(), "fdr": self.fdr(),
        }  # fmt: skip
        return self._labels.table(columns)

    def _shown(self) -> Iterator[str | Cells]:
        yield repr(self)[1:-1]
        labels = self._labels.known(len(self))
        some = zip(labels, self.statistic[:LINES], self.pvalues[:LINES], strict=False)
        rows = [[str(label), f"{value:.3f}", p_value_cell(p)] for label, value, p in some]
        yield Cells(["", "statistic", "p"], first_lines(rows, count=len(self)))

    def __repr__(self) -> str:
        below = int((self.pvalues < 0.05).sum())
        return f"<BatchComparison: {self.name}; {len(self)} responses, {below} with p < 0.05 ({self.null})>"


def compare(larger: BatchFit, smaller: BatchFit, null: Null, n_sim: int | None, seed: Seed) -> BatchComparison:
    """See `BatchResult.compare`."""
    wanted = check_null(null, n_sim, seed)
    if len(larger) != len(smaller) or larger.model.nobs != smaller.model.nobs:
        raise LMMError(
            f"the batches must be of the same responses: they have {len(larger)} of {larger.model.nobs} observations "
            f"and {len(smaller)} of {smaller.model.nobs}"
        )
    if larger.reml != smaller.reml:
        raise LMMError("one batch is by REML and the other by ML; fit both alike")
    if not larger.model.design.residual is smaller.model.design.residual is None:
        raise LMMError("structured residuals are compared response by response: use compare(small[i], large[i])")
    nesting = nest(smaller.model, larger.model)
    if isinstance(nesting, str):
        raise LMMError(f"smaller is not nested in this model, as {nesting}")
    if larger.n_parameters == smaller.n_parameters:
        raise LMMError("the models have as many parameters as each other: there is nothing to test")
    if nesting.fixed and larger.reml:
        raise LMMError("REML criteria cannot be compared where fixed parts differ: fit both with reml=False")
    shift = larger.model.problem.log_jacobian - smaller.model.problem.log_jacobian if larger.reml else 0.0
    statistic = smaller.criterion - larger.criterion - shift
    good = larger.converged & smaller.converged
    name = f"{larger.n_parameters} against {smaller.n_parameters} parameters"
    return _tested(name, larger, statistic, good, nesting, smaller.relative_factor, wanted)


def random_effect_test(
    batch: BatchFit, term: str | None, null: Null, n_sim: int | None, seed: Seed
) -> dict[str, BatchComparison]:
    """See `BatchResult.random_effect_test`."""
    wanted = check_null(null, n_sim, seed)
    model = batch.model
    model.needs_independent_residuals("random_effect_test() of many responses")
    model.needs_unknown_variance("random_effect_test() of many responses", "fit the responses one by one")
    if batch.responses is None:
        raise LMMError(f"{batch.gone}: fit an array to test random effects")
    found = {}
    for effect in effects_of(model, term):
        keep = [j for j in range(model.structure.q) if j not in effect.columns]
        if keep:
            own = without(model, keep)
            smaller = _refitted(batch, own)
            found[effect.name] = compare(batch, smaller, null, n_sim, seed)
            continue
        nesting = nest(None, model)
        if isinstance(nesting, str):
            raise LMMError(f"the random effects cannot be tested: {nesting}")
        statistic = _linear_criteria(batch) - batch.criterion
        found[effect.name] = _tested(effect.name, batch, statistic, batch.converged, nesting, None, wanted)
    return {name: _named(one, name) for name, one in found.items()}


def _named(found: BatchComparison, name: str) -> BatchComparison:
    return BatchComparison(name, found.statistic, found.df, found.pvalues, found.p_std_error, found.null, found._labels)


def _refitted(batch: BatchFit, model: Model) -> BatchFit:
    """The same responses, fitted to another model of the rows."""
    size = max(1, 2**23 // (8 * model.nobs))
    own = model.fittable()
    nested = seen_by(batch, own)
    parts = (np.arange(begin, min(begin + size, len(batch))) for begin in range(0, len(batch), size))
    blocks = (SeenAgain(batch, part, nested) for part in parts)
    return fit_drawn(
        lambda count, responses: BatchFit(own, batch.kind, batch.reml, count, responses), blocks, len(batch), None,
        size, None, False,
    )  # fmt: skip


def _linear_criteria(batch: BatchFit) -> Array:
    """Criteria of the linear model without random effects: a multiple of log RSS but for a constant of the design."""
    model = batch.model.fittable()
    root = model.root_weights
    Q = orthonormal(model.exog[:, model.problem.kept], model.weights)
    offset = 0.0 if model.offset is None else model.offset

    def log_rss(Y: Array) -> Array:
        # some are not finite, and have no fit to be compared with
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = (Y - offset) * root
            for _ in range(2):
                scaled = scaled - (scaled @ Q) @ Q.T
            return np.asarray(np.log(np.einsum("ij,ij->i", scaled, scaled)))

    nu = float(model.df_resid if batch.reml else model.nobs)
    at_zero = model.evaluate(np.zeros(model.structure.n_parameters), reml=batch.reml).value
    constant = at_zero - nu * float(log_rss(model.endog[None])[0])
    out, size = np.empty(len(batch)), max(1, 2**23 // (8 * model.nobs))
    for begin in range(0, len(batch), size):
        part = np.arange(begin, min(begin + size, len(batch)))
        drawn = drawn_log_rss(batch, part)
        out[part] = nu * (log_rss(batch.fitted_responses(part)) if drawn is None else drawn)
    return constant + out


def _tested(
    name: str, batch: BatchFit, statistic: Array, good: NDArray[np.bool_], nesting: Nesting, factors: Array | None,
    wanted: NullWanted,
) -> BatchComparison:  # fmt: skip
    """p-values by a null distribution that all responses share, or one for each where it depends on their variances."""
    null, n_sim, seed = wanted
    if null == "bootstrap":
        raise LMMError("null='bootstrap' is for single fits: use compare(small[i], large[i], null='bootstrap')")
    model = batch.model
    criterion = batch.criterion
    statistic = np.where(statistic > NOTHING + 1e-12 * np.abs(criterion), statistic, 0.0)
    pvalues, error = np.full(len(batch), np.nan), np.zeros(len(batch))
    tested = np.flatnonzero(good)
    statistic = np.where(good, statistic, np.nan)
    text = ""
    exact = null == "exact" or (null == "auto" and factors is None and nesting.alone is not None and not nesting.fixed)
    key: Any = seed if isinstance(seed, int) else int(generator_of(seed).integers(2**62))
    if exact and nesting.alone is not None and not nesting.fixed and not nesting.undetermined:
        try:
            found = spectrum(model.exog[:, model.problem.kept], nesting.alone, model.weights)
            drawn = np.sort(draw(found, n_sim, key, batch.reml))
        except LMMError:
            if null == "exact":
                raise
        else:
            others = ", other variances as known" if factors is not None else ""
            text = f"exact finite-sample distribution{others}, simulated"
            pvalues[tested], error[tested] = _counted(statistic[tested], drawn)
            return BatchComparison(
                name, statistic, nesting.df, pvalues, error, text, FitLabels(model.library, batch.labels)
            )
    if null == "chi2" or (not nesting.new and not nesting.undetermined and null != "exact"):
        pvalues[tested] = chi2_tail(statistic[tested], nesting.df)
        text = f"chi2({nesting.df})"
    elif nesting.boundary == 1 and not nesting.undetermined and not exact:
        pvalues[tested], text = one_variance(statistic[tested], nesting.fixed + nesting.free)
    else:
        text = _one_by_one(batch, tested, statistic, nesting, factors, wanted._replace(seed=key), pvalues, error)
    return BatchComparison(name, statistic, nesting.df, pvalues, error, text, FitLabels(model.library, batch.labels))


def _one_by_one(
    batch: BatchFit, tested: Sequence[int] | NDArray[np.intp], statistic: Array, nesting: Nesting,
    factors: Array | None, wanted: NullWanted, pvalues: Array, error: Array,
) -> str:  # fmt: skip
    """Mixtures, of which the weights may depend on the other variances of each response."""
    text = ""
    shared: dict[float, tuple[float, float]] = {}
    for i in np.asarray(tested).tolist():
        known = shared.get(statistic[i]) if factors is None else None
        if known is None:
            factor = None if factors is None else factors[i]
            found = null_test(float(statistic[i]), nesting, batch.model, factor, batch.reml, *wanted)
            text = found.text
            known = shared[statistic[i]] = found.pvalue, found.p_std_error
        pvalues[i], error[i] = known
    return text


def _counted(statistic: Array, drawn: Array) -> tuple[Array, Array]:
    """As `null_distributions.counted`, for many statistics and sorted draws."""
    n = len(drawn)
    slack = 1e-8 * (1.0 + np.abs(statistic))
    below = np.searchsorted(drawn, statistic - slack, side="left").astype(np.float64)
    p = (1.0 + n - below) / (n + 1.0)
    return p, np.asarray(np.sqrt(p * (1.0 - p) / n))
