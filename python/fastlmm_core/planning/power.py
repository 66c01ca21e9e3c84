"""Power of a test by simulation, from a fit or from parameters that are stated before there are data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..design.replication import Rows, levels_of, observations, subjects
from ..errors import LMMError
from ..estimation.model import Model
from ..estimation.stated import moved
from ..simulation.draws import parametric
from ..support.arguments import checked
from ..support.checks import check_count, number_array
from ..support.display import Cells, Shown
from ..support.seeds import Seed, check_first, key_of
from ..tables.columns import native_frame
from .assumed import generating
from .studies import Alternative, Studies, studies
from .variances import given_sd, is_variance, sd_place, variance_studies
from .variations import left_out, with_icc

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..inference.options import Ddf, Information
    from ..result import LMMResult

__all__ = ["PowerCurve", "PowerResult", "power", "power_curve"]

Array = NDArray[np.float64]
Method = Literal["wald", "lrt"]


# ---- tests ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Hypothesis:
    """L beta = 0; `columns` of X where the rows of L pick single coefficients."""

    label: str
    L: Array
    columns: tuple[int, ...] | None

    @classmethod
    def of(cls, test: Any, model: Model, method: str) -> _Hypothesis:
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
            f"<PowerResult: {shown}, {self.method} test of {self.test} at {_levels(self.alpha)}, {self.n_sim} "
            f"simulations{f', {lost} not certified' if lost else ''}>"
        )


def _levels(alpha: Any) -> str:
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
    alternative: Alternative = "two-sided",
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

    Returns
    -------
    PowerResult

    Notes
    -----
    Models with structured residuals, or restricted covariances of random effects, are fitted one by one: some
    milliseconds each.

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
    check_count(n_sim, "n_sim")
    check_first(first, seed)
    seed = _integer(seed)
    if is_variance(test):
        if alternative == "less":
            raise LMMError("alternative='less': a variance is not below zero; leave alternative out")
        truth = given_sd(truth, test, effect)
        own, sd = variance_studies(truth, test, n_sim, seed, first=first, reml=reml, n_jobs=n_jobs, progress=progress)
        return _summary(own, test, "lrt", ddf, levels, np.array([sd]), own.params[own.converged])
    hypothesis = _Hypothesis.of(test, truth.model, method)
    truth = hypothesis.given_effect(truth, effect)
    if alternative != "two-sided" and (len(hypothesis.L) > 1 or method == "lrt"):
        raise LMMError(f"alternative={alternative!r} is for a t test: of one coefficient or contrast, by method='wald'")
    reduced = None
    if method == "lrt":
        columns = [i for i in truth.model.problem.kept if i not in (hypothesis.columns or ())]
        reduced = truth.model.of(truth.model.design.columns(columns), None)
    found = studies(
        truth, hypothesis.L, reduced, n_sim, seed, first=first, reml=reml, ddf=ddf, information=information,
        n_jobs=n_jobs, progress=progress, alternative=alternative,
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


def _integer(seed: Seed) -> int:
    """One number that stands for a seed: integers as they are."""
    key = key_of(seed)
    return int(seed) if isinstance(seed, int | np.integer) else int.from_bytes(key.tobytes(), "little")


# ---- curves --------------------------------------------------------------------------------------------------------


@checked
@dataclasses.dataclass(frozen=True, repr=False)
class PowerCurve(Shown):
    """Power along a design or an effect.

    Attributes
    ----------
    along : str
        "subjects", "observations", "effect" or a grouping factor.
    values : (k,) array
    results : tuple of PowerResult
        One for each value.

    With several levels alpha the arrays of powers and limits are (k, levels).
    """

    along: str
    values: NDArray[Any]
    results: tuple[PowerResult, ...]
    _library: str = dataclasses.field(repr=False)

    @property
    def power(self) -> Array:
        """Share of the simulations that reject (k,), by level (k, levels) where there are several."""
        return np.array([result.power for result in self.results])

    @property
    def conf_low(self) -> Array:
        """Lower ends of the exact 95 % intervals (k,)."""
        return np.array([result.conf_low for result in self.results])

    @property
    def conf_high(self) -> Array:
        """Upper ends of the exact 95 % intervals (k,)."""
        return np.array([result.conf_high for result in self.results])

    def to_frame(self) -> Any:
        """One row per value and level, in the library of the caller's data (or a dict of arrays)."""
        alpha = np.atleast_1d(self.results[0].alpha)
        columns = {self.along: np.repeat(self.values, len(alpha))}
        if len(alpha) > 1:
            columns["alpha"] = np.tile(alpha, len(self.values))
        columns |= {name: getattr(self, name).ravel() for name in ("power", "conf_low", "conf_high")}
        for name in ("n_converged", "singular_fraction"):
            columns[name] = np.repeat([getattr(result, name) for result in self.results], len(alpha))
        return native_frame(self._library, columns)

    def target(self, power: float = 0.8, alpha: float | None = None) -> float:
        """The smallest value at which the power reaches a target.

        The simulated powers are made monotone by isotonic regression (Barlow et al. 1972, Statistical Inference under
        Order Restrictions, sec. 1.2).  Between the two values that enclose the target, the normal quantile of the
        power is taken as linear in the effect or in the square root of the number of subjects or observations, as it
        is for a z test, up to the opposite tail.  Numbers of subjects and observations are rounded up.

        Parameters
        ----------
        power : float
        alpha : float, optional
            One of the levels of the test, where there are several.

        Returns
        -------
        float
            The first value where the power is reached there already, NaN where it is reached nowhere.

        Raises
        ------
        LMMError
            For a power outside (0, 1), a level that was not simulated, or effects of both signs.
        """
        from scipy.special import ndtri

        if not 0.0 < power < 1.0:
            raise LMMError(f"power={power} must lie between 0 and 1, e.g. 0.8")
        if self.values.min() < 0.0 < self.values.max():
            raise LMMError("target() needs effects of one sign: the power falls and rises again around 0")
        levels_of_test = np.atleast_1d(self.results[0].alpha)
        if alpha is None and len(levels_of_test) > 1:
            raise LMMError(f"target() needs alpha, one of the {_levels(levels_of_test)} of the tests")
        chosen = 0 if alpha is None else int(np.argmin(np.abs(levels_of_test - alpha)))
        if alpha is not None and not np.isclose(levels_of_test[chosen], alpha):
            raise LMMError(f"alpha={alpha} is not among the {_levels(levels_of_test)} of the tests")
        order = np.argsort(np.abs(self.values), kind="stable")
        values, n = self.values[order].astype(float), self.results[0].n_sim
        levels = _isotonic(self.power.reshape(len(order), -1)[order, chosen])
        at = int(np.argmax(levels >= power))
        if levels[at] < power:
            return float("nan")
        if at == 0:
            return float(values[0])
        z = ndtri(np.clip(levels[at - 1 : at + 1], 0.5 / n, 1.0 - 0.5 / n))
        share = float(np.clip((ndtri(power) - z[0]) / (z[1] - z[0]), 0.0, 1.0))
        if self.along in ("effect", "icc", "missing"):
            return float(values[at - 1] + share * (values[at] - values[at - 1]))
        low, high = np.sqrt(values[at - 1 : at + 1])
        return float(np.ceil(round((low + share * (high - low)) ** 2, 9)))

    def _shown(self) -> Iterator[str | Cells]:
        first = self.results[0]
        tested = f"{first.method} test of {first.test} at {_levels(first.alpha)}"
        yield f"Power of the {tested}, {first.n_sim} simulations each"
        rows = []
        for value, result in zip(self.values.tolist(), self.results, strict=True):
            shown = zip(*(np.atleast_1d(x) for x in (result.power, result.conf_low, result.conf_high)), strict=True)
            lost = result.n_sim - result.n_converged
            cells = [cell for numbers in shown for cell in (f"{number:.3f}" for number in numbers)]
            rows.append([f"{value:g}", *cells, f"{lost} not certified" if lost else ""])
        yield Cells([self.along, *["power", "2.5 %", "97.5 %"] * np.size(first.alpha), ""], rows, 0)


def _isotonic(values: Array) -> Array:
    """Least-squares non-decreasing sequence: neighbours that fall are averaged."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, count_a), (b, count_b) = pools[-2:]
            pools[-2:] = [((a * count_a + b * count_b) / (count_a + count_b), count_a + count_b)]
    return np.repeat([level for level, _ in pools], [count for _, count in pools])


@checked
def power_curve(
    source: Fit, test: Any, along: str = "subjects", values: ArrayLike = (), *,
    effect: ArrayLike | None = None, n_sim: int = 1000, alpha: ArrayLike = 0.05, method: Method = "wald",
    ddf: Ddf = "satterthwaite", information: Information = "auto", seed: Seed = None, reml: bool = True,
    n_jobs: int | None = None, progress: bool | None = None, alternative: Alternative = "two-sided",
) -> PowerCurve:  # fmt: skip
    """Power for several sizes of a design or several effects.

    Parameters
    ----------
    source : LMMResult
    test : str, list of str, or (rows, p) array
        As for `power`.
    along : {"subjects", "observations", "effect"} or str
        "subjects": designs of so many groups, copies of the given ones; of the coarsest factor where several are
        nested.  Groups with the same rows of X, Z, weights and offset are of one kind; kinds take turns in proportion
        to their numbers, and within a kind the groups in the order of their first rows, from the start again when all
        have been used.  So the arms of a trial keep their ratio at every size.  The name of a grouping factor: designs
        of so many of its levels with all their rows, taken in the same way, where the levels of crossed factors stay
        as they are; for a factor that is nested in another, so many in each level of that.  "observations": the first
        so many rows of each group (of the factor that has most).  "effect": true values of the one coefficient, or the
        standard deviation, tested.  "icc": share of the random effects in the variance around the fixed part, the
        whole of it as it is.  "missing": share of the observations that are left out at random, once for each value.
    values : sequence of numbers
    effect, n_sim, alpha, method, ddf, information, reml, n_jobs, progress, alternative
        As for `power`.
    seed : int, sequence of int, SeedSequence or Generator, optional
        Each value has a stream of its own, by its position.

    Returns
    -------
    PowerCurve

    Raises
    ------
    LMMError
        For arguments that cannot be used, or a value whose design cannot be fitted.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> design = {"Days": list(range(4)) * 12, "Subject": [i // 4 for i in range(48)]}
    >>> plan = flc.assume("y ~ Days + (1 | Subject)", design, [250, 5], [[900.0]], 600.0)
    >>> curve = flc.power_curve(plan, "Days", along="Subject", values=[10, 40], n_sim=400, seed=1)
    >>> bool(curve.power[1] > curve.power[0])
    True
    """
    truth = generating(source)
    factors = [factor.grouping.name for factor in truth.model.factors]
    if along not in (*_ALONG, *factors):
        others = ", ".join(map(repr, [*_ALONG[1:], *factors[:-1]]))
        raise LMMError(f"along={along!r} is unknown: use 'subjects', {others} or {factors[-1]!r}")
    points = number_array(values, "values")
    if points.ndim != 1 or len(points) == 0:
        raise LMMError("values must be a sequence of numbers, e.g. [50, 100, 200]")
    root = _integer(seed)
    moving = _moving(truth, test, method, along)
    if along == "effect":
        if effect is not None:
            raise LMMError("effect is what along='effect' varies; leave it out")
        sources: Iterator[LMMResult] = (moving(truth, value) for value in points)
    elif along in ("icc", "missing"):
        if not ((points >= 0.0) & (points < 1.0)).all():
            raise LMMError(f"values must be shares of {along} from 0 to below 1; not {points.tolist()}")
        truth = moving(truth, effect)
        if along == "icc":
            sources = (with_icc(truth, value) for value in points.tolist())
        else:
            sources = (
                _resized(truth, along, value, *left_out(truth.model.design, value, _place(root, -1 - place)))
                for place, value in enumerate(points.tolist())
            )
    else:
        least = 1 if along == "observations" else 2
        if (points % 1.0 != 0.0).any() or (points < least).any():
            raise LMMError(f"values must be whole numbers of {along}, at least {least}; not {points.tolist()}")
        points = points.astype(np.int64)
        truth = moving(truth, effect)
        resize = _resizing(truth.model, along)
        sources = (_resized(truth, along, value, *resize(value)) for value in points.tolist())
    results = tuple(
        power(
            source, test, n_sim=n_sim, alpha=alpha, method=method, ddf=ddf, information=information,
            seed=_place(root, place), reml=reml, n_jobs=n_jobs, progress=progress, alternative=alternative,
        )
        for place, source in enumerate(sources)
    )  # fmt: skip
    return PowerCurve(along, points, results, truth.model.library)


_ALONG = ("subjects", "observations", "effect", "icc", "missing")


def _moving(truth: LMMResult, test: Any, method: str, along: str) -> Callable[[LMMResult, Any], LMMResult]:
    """What sets the parameter that is tested."""
    if is_variance(test):
        sd_place(truth.model, test)
        return lambda source, value: given_sd(source, test, value)
    hypothesis = _Hypothesis.of(test, truth.model, method)
    if along == "effect" and (len(hypothesis.L) != 1 or hypothesis.columns is None):
        raise LMMError("along='effect' needs a test of one coefficient, by its name")
    return lambda source, value: hypothesis.given_effect(source, value)


def _place(root: int, place: int) -> int:
    """The seed of one point of a curve; of its design, where the place is negative."""
    key = (place,) if place >= 0 else (-1 - place, 1)
    return int.from_bytes(np.random.SeedSequence(root, spawn_key=key).generate_state(4).tobytes(), "little")


def _resizing(model: Model, along: str) -> Callable[[int], Rows]:
    if along == "subjects":
        return subjects(model.design)
    return observations(model.design) if along == "observations" else levels_of(model.design, along)


def _resized(
    truth: LMMResult, along: str, value: int, rows: NDArray[np.intp], codes: tuple[NDArray[np.intp], ...]
) -> LMMResult:
    found = moved(truth, None, None, None, truth.model.of(truth.model.design.rows(rows, codes), None))
    try:
        model = found.model.fittable(lambda rng: parametric(found)(rng, 1)[0])
    except LMMError as error:
        raise LMMError(f"values: the design with {value} {along} cannot be fitted: {error}") from None
    lost = np.setdiff1d(truth.model.problem.kept, model.problem.kept)
    if len(lost):
        raise LMMError(
            f"values: with {value} {along} the coefficient {model.exog_names[lost[0]]!r} cannot be told from those "
            "before it; leave this value out"
        )
    return found
