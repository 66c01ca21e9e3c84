"""Power of a test by simulation, from a fit or from parameters that are stated before there are data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..errors import LMMError
from ..estimation.model import Model
from ..estimation.stated import moved
from ..support.arguments import checked
from ..support.checks import check_count, number_array
from ..support.display import Cells, Shown
from ..support.seeds import Seed, check_first, key_of
from ..support.types import Array
from .assumed import generating
from .studies import Alternative, Studies, check_alternative, studies
from .variances import given_sd, is_variance, variance_studies

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..inference.options import Ddf, Information
    from ..result import LMMResult
    from ..simulation.dropout import Dropout

__all__ = ["Hypothesis", "Method", "PowerResult", "power", "shown_levels", "whole_seed"]

Method = Literal["wald", "lrt"]


# ---- tests ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """L beta = 0; `columns` of X where the rows of L pick single coefficients."""

    label: str
    L: Array
    columns: tuple[int, ...] | None

    @classmethod
    def of(cls, test: Any, model: Model, method: str) -> Hypothesis:
        names, kept = model.exog_names, model.problem.kept
        if method not in ("wald", "lrt"):
            raise LMMError(f"method={method!r} is unknown: use 'wald' or 'lrt'")
        given = [test] if isinstance(test, str) else list(test) if isinstance(test, (list, tuple)) else []
        if given and all(isinstance(name, str) for name in given):
            for name in given:
                if name not in names:
                    close = difflib.get_close_matches(name, names, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(map(repr, names))}"
                    raise LMMError(f"test={name!r} is not a coefficient of the model; {hint}")
            columns = tuple(names.index(name) for name in given)
            if len(set(columns)) < len(columns):
                raise LMMError("test names a coefficient twice")
            hypothesis = cls(", ".join(given), np.eye(len(names))[list(columns)], columns)
        else:
            L = np.atleast_2d(number_array(test, "test"))
            if L.shape[1:] != (len(names),) or len(L) == 0:
                raise LMMError(f"test must have {len(names)} columns, one per coefficient, not the shape {L.shape}")
            if np.linalg.matrix_rank(L) < len(L):
                raise LMMError("test has rows that are combinations of the others; leave these out")
            if method == "lrt":
                raise LMMError("method='lrt' needs the names of the coefficients to leave out; use method='wald'")
            hypothesis = cls(f"{len(L)} contrast{'s' * (len(L) > 1)}", L, None)
        dropped = np.setdiff1d(np.arange(len(names)), kept)
        lost = dropped[hypothesis.L[:, dropped].any(axis=0)]
        if len(lost):
            raise LMMError(
                f"test uses the coefficient {names[lost[0]]!r}, which the design cannot tell from those before it"
            )
        return hypothesis

    def given_effect(self, truth: LMMResult, effect: Any) -> LMMResult:
        """The model with the tested coefficients at `effect`."""
        if effect is None:
            return truth
        if self.columns is None:
            raise LMMError("effect needs a test by the names of coefficients, not by contrasts")
        values = np.atleast_1d(number_array(effect, "effect"))
        if values.shape != (len(self.columns),):
            raise LMMError(f"effect must hold {len(self.columns)} values, one for each of {self.label}")
        params = truth.beta.copy()
        params[list(self.columns)] = values
        return moved(truth, params, None, None)


@dataclasses.dataclass(frozen=True)
class PowerResult(Shown):
    """Power of a test in simulations.

    Attributes
    ----------
    test : str
        What is tested: L beta = 0.
    method : {"wald", "lrt"}
    ddf : str
        Degrees of freedom of the Wald test.
    alpha : float or (k,) array
    power : float or (k,) array
        Share of the simulations that reject, for each level; those that were not certified count as not rejecting.
    conf_low, conf_high : float or (k,) array
        Exact 95 % interval of the power for the number of simulations (Clopper and Pearson 1934, Biometrika 26,
        404-413).
    n_sim, n_converged : int
    singular_fraction : float
        Share of the certified fits that lie on the boundary.
    effect : (rows,) array
        True value of L beta.
    estimate, bias : (rows,) arrays
        Mean of its estimates, and that less the true value.
    pvalues : (n_sim,) array
        NaN for fits that were not certified.
    """

    test: str
    method: str
    ddf: str
    alpha: Any
    power: Any
    conf_low: Any
    conf_high: Any
    n_sim: int
    n_converged: int
    singular_fraction: float
    effect: Array
    estimate: Array
    bias: Array
    pvalues: Array = dataclasses.field(repr=False)

    def join(self, *others: PowerResult) -> PowerResult:
        """These simulations and those of other parts of the run, made with other values of ``first=``.

        Parameters
        ----------
        *others : PowerResult
            Of the same test of the same source.

        Returns
        -------
        PowerResult

        Raises
        ------
        LMMError
            For parts of another test, method, level or effect.
        """
        parts = (self, *others)
        for place, part in enumerate(others, start=1):
            if not isinstance(part, PowerResult):
                raise LMMError(f"join(): argument {place} is a {type(part).__name__}, not a PowerResult")
            same = all(getattr(part, name) == getattr(self, name) for name in ("test", "method", "ddf"))
            if not (same and all(np.array_equal(getattr(part, n), getattr(self, n)) for n in ("alpha", "effect"))):
                raise LMMError(f"join(): argument {place} belongs to another test, method, level or effect")
        pvalues = np.concatenate([part.pvalues for part in parts])
        count = sum(part.n_converged for part in parts)
        live = [part for part in parts if part.n_converged]
        estimate = sum((p.n_converged * p.estimate for p in live), np.zeros_like(self.effect)) / (count or np.nan)
        share, low, high = _shares(pvalues, np.asarray(self.alpha))
        return dataclasses.replace(
            self,
            power=share,
            conf_low=low,
            conf_high=high,
            n_sim=len(pvalues),
            n_converged=count,
            singular_fraction=sum(p.n_converged * p.singular_fraction for p in live) / (count or float("nan")),
            estimate=estimate,
            bias=estimate - self.effect,
            pvalues=pvalues,
        )

    def _shown(self) -> Iterator[str | Cells]:
        lost = self.n_sim - self.n_converged
        yield f"Power of the {self.method} test of {self.test}, {self.n_sim:,} simulations"
        columns = (np.atleast_1d(x) for x in (self.alpha, self.power, self.conf_low, self.conf_high))
        rows = [
            [f"{a:g}", f"{power:.3f}", f"{low:.3f}", f"{high:.3f}"]
            for a, power, low, high in zip(*columns, strict=True)
        ]
        yield Cells(["level", "power", "2.5 %", "97.5 %"], rows, 0)
        effects = zip(self.effect.tolist(), self.estimate.tolist(), strict=True)
        yield "True and mean estimated effect: " + "; ".join(f"{true:.4g}, {mean:.4g}" for true, mean in effects)
        yield f"{lost} not certified, {100.0 * self.singular_fraction:.1f} % singular"

    def __repr__(self) -> str:
        lost = self.n_sim - self.n_converged
        rows = zip(*(np.atleast_1d(x).tolist() for x in (self.power, self.conf_low, self.conf_high)), strict=True)
        shown = "; ".join(f"{power:.3f} [{low:.3f}, {high:.3f}]" for power, low, high in rows)
        return (
            f"<PowerResult: {shown}, {self.method} test of {self.test} at {shown_levels(self.alpha)}, {self.n_sim} "
            f"simulations{f', {lost} not certified' if lost else ''}>"
        )


def shown_levels(alpha: Any) -> str:
    """The levels of a test, in words."""
    values = np.atleast_1d(alpha).tolist()
    return f"level{'s' * (len(values) > 1)} {', '.join(f'{value:g}' for value in values)}"


def _checked_levels(alpha: Any) -> Array:
    """One level or several, each between 0 and 1."""
    values = number_array(alpha, "alpha")
    if values.ndim > 1 or not values.size:
        raise LMMError("alpha must be a number or a sequence of numbers, e.g. 0.05 or [0.05, 0.01]")
    for value in np.atleast_1d(values).tolist():
        if not 0.0 < value < 1.0:
            raise LMMError(f"alpha={value} must lie between 0 and 1, e.g. 0.05")
    return values


def _shares(pvalues: Array, levels: Array) -> Any:
    """Share of the simulations that reject at each level, with exact limits."""
    counts = [int(np.sum(pvalues < level)) for level in np.atleast_1d(levels)]
    shares = np.array([(count / len(pvalues), *_interval(count, len(pvalues))) for count in counts]).T
    return shares if levels.ndim else shares[:, 0].tolist()


def _interval(count: int, n: int) -> tuple[float, float]:
    from scipy.special import betaincinv

    low = float(betaincinv(count, n - count + 1, 0.025)) if count else 0.0
    return low, float(betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0


@checked
def power(
    source: Fit, test: Any, *, effect: ArrayLike | None = None, n_sim: int = 1000,
    alpha: ArrayLike = 0.05, method: Method = "wald", ddf: Ddf = "satterthwaite", information: Information = "auto",
    seed: Seed = None, reml: bool = True, n_jobs: int | None = None, progress: bool | None = None, first: int = 0,
    alternative: Alternative = "two-sided", dropout: Dropout | None = None,
) -> PowerResult:  # fmt: skip
    """Power of a test of fixed effects, or of a variance, by simulation.

    Parameters
    ----------
    source : LMMResult
        Of a fit or from `assume`: what generates the data and is fitted to them.
    test : str, list of str, or (rows, p) array
        A coefficient, several tested together, or contrasts L in L beta = 0.  Or a standard deviation by its name,
        ``"sd_Days|Subject"``: the likelihood ratio test of `LMMResult.random_effect_test`.
    effect : float or array, optional
        True values of the coefficients named in `test`, or of the standard deviation; by default those of `source`.
        0 gives the type I error.
    n_sim : int
    alpha : float or sequence of float
        Level of the test, or several: all are judged by the same simulations.
    method : {"wald", "lrt"}
        t or F test, or likelihood ratio of fits by maximum likelihood with and without the coefficients to the same
        data (chi-square).
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        Denominator degrees of freedom of the Wald test; "normal" takes the normal or chi-square distribution.
    information : {"auto", "expected", "observed"}
        For Kenward-Roger, see `LMMResult.test`.
    seed : int, sequence of int, SeedSequence or Generator, optional
    reml : bool
        For the Wald test; the likelihood ratio always takes maximum likelihood.
    n_jobs : int, optional
        Threads; results do not depend on it.
    progress : bool, optional
        Show a progress bar (needs tqdm); by default in interactive sessions.
    first : int
        Place in the stream of the seed of the first simulation: parts of a run, made in several processes with the same
        seed, are joined by `PowerResult.join`.
    alternative : {"two-sided", "greater", "less"}
        Of a t test: that the coefficient or contrast is above or below zero.
    dropout : Dropout, optional
        Who leaves before the end: each draw is fitted on the responses that are observed.

    Returns
    -------
    PowerResult

    Notes
    -----
    Models with structured residuals, or restricted covariances of random effects, are fitted one by one: some
    milliseconds each.  So are models whose rows are not held (`fastlmm_core.scan`), of draws of their sums.

    Raises
    ------
    LMMError
        For arguments that cannot be used.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> design = {"Days": list(range(4)) * 12, "Subject": [i // 4 for i in range(48)]}
    >>> plan = flc.assume("y ~ Days + (1 | Subject)", design, [250, 5], [[900.0]], 600.0)
    >>> found = flc.power(plan, "Days", n_sim=400, seed=1)
    >>> bool(0.1 < found.power < 0.9)
    True
    """
    truth = generating(source)
    levels = _checked_levels(alpha)
    check_alternative(alternative)
    check_count(n_sim, "n_sim")
    check_first(first, seed)
    seed = whole_seed(seed)
    if truth.model.streamed and is_variance(test):
        raise LMMError(
            "of a model whose rows are not held, power() draws sums for tests of coefficients, by method='wald' or "
            "'lrt'; for tests of variances fit a table in memory, some hundred groups of the data"
        )
    if is_variance(test):
        if alternative == "less":
            raise LMMError("alternative='less': a variance is not below zero; leave alternative out")
        if dropout is not None:
            raise LMMError(
                "dropout is for tests of fixed effects: the null distribution of the test of a variance is that of a "
                "design, and each draw has its own"
            )
        truth = given_sd(truth, test, effect)
        own, sd = variance_studies(truth, test, n_sim, seed, first=first, reml=reml, n_jobs=n_jobs, progress=progress)
        return _summary(own, test, "lrt", ddf, levels, np.array([sd]), own.params[own.converged])
    hypothesis = Hypothesis.of(test, truth.model, method)
    truth = hypothesis.given_effect(truth, effect)
    if alternative != "two-sided" and (len(hypothesis.L) > 1 or method == "lrt"):
        raise LMMError(f"alternative={alternative!r} is for a t test: of one coefficient or contrast, by method='wald'")
    found = studies(
        truth, hypothesis.L, method == "lrt", n_sim, seed, first=first, reml=reml, ddf=ddf, information=information,
        n_jobs=n_jobs, progress=progress, alternative=alternative, dropout=dropout,
    )  # fmt: skip
    kept = truth.model.problem.kept
    estimates = found.params[found.converged][:, kept] @ hypothesis.L[:, kept].T
    return _summary(found, hypothesis.label, method, ddf, levels, hypothesis.L @ truth.beta, estimates)


def _summary(
    found: Studies, label: str, method: str, ddf: str, levels: Array, effects: Array, estimates: Array
) -> PowerResult:
    """The power of a test; `estimates` (certified fits, rows) of the `effects` (rows,)."""
    good, pvalues = found.converged, found.pvalues
    share, low, high = _shares(pvalues, levels)
    estimate = estimates.mean(axis=0) if good.any() else np.full(len(effects), np.nan)
    return PowerResult(
        test=label,
        method=method,
        ddf=ddf,
        alpha=levels if levels.ndim else float(levels),
        power=share,
        conf_low=low,
        conf_high=high,
        n_sim=len(pvalues),
        n_converged=int(good.sum()),
        singular_fraction=float(found.singular[good].mean()) if good.any() else float("nan"),
        effect=effects,
        estimate=estimate,
        bias=estimate - effects,
        pvalues=pvalues,
    )


def whole_seed(seed: Seed) -> int:
    """One number that stands for a seed: integers as they are."""
    key = key_of(seed)
    return int(seed) if isinstance(seed, int | np.integer) else int.from_bytes(key.tobytes(), "little")
