"""Power along designs and effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..design.replication import Rows, levels_of, observations, subjects
from ..errors import LMMError
from ..estimation.model import Model
from ..estimation.stated import moved
from ..simulation.draws import parametric
from ..simulation.dropout import Dropout, dropping
from ..support.arguments import checked
from ..support.checks import number_array
from ..support.display import Cells, Shown
from ..support.seeds import Seed
from ..support.types import Array
from ..tables.columns import native_frame
from .assumed import generating
from .power import Hypothesis, Method, PowerResult, power, shown_levels, whole_seed
from .studies import Alternative
from .variances import given_sd, is_variance, sd_place
from .variations import left_out, with_icc

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..inference.options import Ddf, Information
    from ..result import LMMResult

__all__ = ["PowerCurve", "PowerGrid", "power_curve"]


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
    def library(self) -> str:
        """Whose frames `to_frame` gives."""
        return self._library

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
        return native_frame(self._library, _columns({self.along: self.values}, self.results))

    def target(self, power: float = 0.8, alpha: float | None = None) -> float:
        """The smallest value at which the power reaches a target, the largest where the power falls.

        The power falls along "missing" and "dropout", and along "icc" where the test is between groups.  The simulated
        powers are made monotone by isotonic regression (Barlow et al. 1972, Statistical Inference under Order
        Restrictions, sec. 1.2).  Between the two values that enclose the target, the normal quantile of the power is
        taken as linear in the effect, in the share, or in the square root of the number of subjects or observations,
        as it is for a z test, up to the opposite tail.  Numbers of subjects and observations are rounded up.

        Parameters
        ----------
        power : float
        alpha : float, optional
            One of the levels of the test, where there are several.

        Returns
        -------
        float
            The first value (the last one where the power falls) where the power is reached there already, NaN where it
            is reached nowhere.

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
            raise LMMError(f"target() needs alpha, one of the {shown_levels(levels_of_test)} of the tests")
        chosen = 0 if alpha is None else int(np.argmin(np.abs(levels_of_test - alpha)))
        if alpha is not None and not np.isclose(levels_of_test[chosen], alpha):
            raise LMMError(f"alpha={alpha} is not among the {shown_levels(levels_of_test)} of the tests")
        order = np.argsort(np.abs(self.values), kind="stable")
        powers = self.power.reshape(len(order), -1)[:, chosen]
        if self.along in _SHARES and (self.values - self.values.mean()) @ powers < 0.0:
            order = order[::-1]
        values, n = self.values[order].astype(float), self.results[0].n_sim
        levels = _isotonic(powers[order])
        at = int(np.argmax(levels >= power))
        if levels[at] < power:
            return float("nan")
        if at == 0:
            return float(values[0])
        z = ndtri(np.clip(levels[at - 1 : at + 1], 0.5 / n, 1.0 - 0.5 / n))
        share = float(np.clip((ndtri(power) - z[0]) / (z[1] - z[0]), 0.0, 1.0))
        if self.along in ("effect", *_SHARES):
            return float(values[at - 1] + share * (values[at] - values[at - 1]))
        low, high = np.sqrt(values[at - 1 : at + 1])
        return float(np.ceil(round((low + share * (high - low)) ** 2, 9)))

    def _shown(self) -> Iterator[str | Cells]:
        return _lines({self.along: self.values}, self.results)


@checked
@dataclasses.dataclass(frozen=True, repr=False)
class PowerGrid(Shown):
    """Power at all combinations of several designs or effects.

    Attributes
    ----------
    along : tuple of str
        What varies.
    values : tuple of arrays
        The values of each.
    results : tuple of PowerResult
        One for each combination, those of the last fastest.
    """

    along: tuple[str, ...]
    values: tuple[NDArray[Any], ...]
    results: tuple[PowerResult, ...]
    _library: str = dataclasses.field(repr=False)

    def _shaped(self, name: str) -> Array:
        found = np.array([getattr(result, name) for result in self.results])
        return found.reshape(*map(len, self.values), *found.shape[1:])

    @property
    def power(self) -> Array:
        """Share of the simulations that reject: an axis for each that varies, and one for several levels."""
        return self._shaped("power")

    @property
    def conf_low(self) -> Array:
        """Lower ends of the exact 95 % intervals, in the shape of `power`."""
        return self._shaped("conf_low")

    @property
    def conf_high(self) -> Array:
        """Upper ends of the exact 95 % intervals, in the shape of `power`."""
        return self._shaped("conf_high")

    def _points(self) -> dict[str, NDArray[Any]]:
        grid = np.meshgrid(*self.values, indexing="ij")
        return {name: values.ravel() for name, values in zip(self.along, grid, strict=True)}

    def to_frame(self) -> Any:
        """One row per combination and level, in the library of the caller's data (or a dict of arrays)."""
        return native_frame(self._library, _columns(self._points(), self.results))

    def _shown(self) -> Iterator[str | Cells]:
        return _lines(self._points(), self.results)


def _columns(points: dict[str, NDArray[Any]], results: tuple[PowerResult, ...]) -> dict[str, NDArray[Any]]:
    """Columns of a table with a row for each point and level."""
    alpha = np.atleast_1d(results[0].alpha)
    columns = {name: np.repeat(values, len(alpha)) for name, values in points.items()}
    if len(alpha) > 1:
        columns["alpha"] = np.tile(alpha, len(results))
    columns |= {n: np.ravel([getattr(result, n) for result in results]) for n in ("power", "conf_low", "conf_high")}
    for name in ("n_converged", "singular_fraction"):
        columns[name] = np.repeat([getattr(result, name) for result in results], len(alpha))
    return columns


def _lines(points: dict[str, NDArray[Any]], results: tuple[PowerResult, ...]) -> Iterator[str | Cells]:
    """A title, and a line for each point."""
    first = results[0]
    tested = f"{first.method} test of {first.test} at {shown_levels(first.alpha)}"
    yield f"Power of the {tested}, {first.n_sim} simulations each"
    rows = []
    for place, result in enumerate(results):
        shown = zip(*(np.atleast_1d(x) for x in (result.power, result.conf_low, result.conf_high)), strict=True)
        lost = result.n_sim - result.n_converged
        cells = [f"{values[place]:g}" for values in points.values()]
        cells += [f"{number:.3f}" for numbers in shown for number in numbers]
        rows.append([*cells, f"{lost} not certified" if lost else ""])
    yield Cells([*points, *["power", "2.5 %", "97.5 %"] * np.size(first.alpha), ""], rows, 0)


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
    source: Fit, test: Any, along: str | Sequence[str] = "subjects", values: Any = (), *,
    effect: ArrayLike | None = None, n_sim: int = 1000, alpha: ArrayLike = 0.05, method: Method = "wald",
    ddf: Ddf = "satterthwaite", information: Information = "auto", seed: Seed = None, reml: bool = True,
    n_jobs: int | None = None, progress: bool | None = None, alternative: Alternative = "two-sided",
    dropout: Dropout | None = None,
) -> PowerCurve | PowerGrid:  # fmt: skip
    """Power for several sizes of a design or several effects.

    Parameters
    ----------
    source : LMMResult
    test : str, list of str, or (rows, p) array
        As for `power`.
    along : {"subjects", "observations", "effect", "icc", "missing", "dropout"} or str, or a list of several
        "subjects": designs of so many groups, copies of the given ones; of the coarsest factor where several are
        nested.  Groups with the same rows of X, Z, weights and offset are of one kind; kinds take turns in proportion
        to their numbers, and within a kind the groups in the order of their first rows, from the start again when all
        have been used.  So the arms of a trial keep their ratio at every size.  The name of a grouping factor: designs
        of so many of its levels with all their rows, taken in the same way, where the levels of crossed factors stay
        as they are; for a factor that is nested in another, so many in each level of that.  "observations": the first
        so many rows of each group (of the factor that has most).  "effect": true values of the one coefficient, or the
        standard deviation, tested.  "icc": share of the random effects in the variance around the fixed part, the
        whole of it as it is.  "missing": share of the observations that are left out at random, once for each value.
        "dropout": rates of a `Dropout`, of the model that is given or at random.
        Of several all combinations are simulated; they are applied in their order.
    values : sequence of numbers, or a list of one for each of several
    effect, n_sim, alpha, method, ddf, information, reml, n_jobs, progress, alternative, dropout
        As for `power`.
    seed : int, sequence of int, SeedSequence or Generator, optional
        Each value has a stream of its own, by its position.

    Returns
    -------
    PowerCurve
        Or a `PowerGrid` along several.

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
    truth, root = generating(source), whole_seed(seed)
    options: dict[str, Any] = {
        "n_sim": n_sim, "alpha": alpha, "method": method, "ddf": ddf, "information": information, "reml": reml,
        "n_jobs": n_jobs, "progress": progress, "alternative": alternative, "dropout": dropout,
    }  # fmt: skip
    if not isinstance(along, str):
        return _grid(truth, test, tuple(along), values, effect, root, options)
    points, sources = _sources(truth, test, along, values, effect, root, method)
    results = tuple(
        power(source, test, seed=_place(root, place), **_at(options, along, points[place]))
        for place, source in enumerate(sources)
    )
    return PowerCurve(along, points, results, truth.model.library)


def _grid(
    truth: LMMResult, test: Any, along: tuple[str, ...], values: Any, effect: Any, root: int, options: dict[str, Any]
) -> PowerGrid:
    """Curves along the last, at every combination of the others."""
    axes = list(values) if isinstance(values, (list, tuple)) else []
    if not along or len(axes) != len(along) or len(set(along)) < len(along):
        raise LMMError(
            f"along={list(along)} needs a list of as many sequences of values, and different names, e.g. "
            "along=['subjects', 'missing'], values=[[20, 40], [0.0, 0.2]]"
        )
    if effect is not None and "effect" in along:
        raise LMMError("effect is what along='effect' varies; leave it out")
    found: list[NDArray[Any]] = []

    def descend(source: LMMResult, depth: int, root: int, options: dict[str, Any]) -> Iterator[PowerResult]:
        # what is left of the effect is set first: designs keep it
        points, sources = _sources(
            source, test, along[depth], axes[depth], effect if depth == 0 else None, root, options["method"]
        )
        if len(found) == depth:
            found.append(points)
        for place, moved_source in enumerate(sources):
            here = _at(options, along[depth], points[place])
            if depth + 1 < len(along):
                yield from descend(moved_source, depth + 1, _place(root, place), here)
            else:
                yield power(moved_source, test, seed=_place(root, place), **here)

    results = tuple(descend(truth, 0, root, options))
    return PowerGrid(along, tuple(found), results, truth.model.library)


def _at(options: dict[str, Any], along: str, value: Any) -> dict[str, Any]:
    """The options of `power` at a value."""
    return options | {"dropout": dropping(options["dropout"], float(value))} if along == "dropout" else options


def _sources(
    truth: LMMResult, test: Any, along: str, values: ArrayLike, effect: Any, root: int, method: Method
) -> tuple[NDArray[Any], Iterator[LMMResult]]:
    """The values of a curve, and the models there."""
    factors = [factor.grouping.name for factor in truth.model.factors]
    if along not in (*_ALONG, *factors):
        others = ", ".join(map(repr, [*_ALONG[1:], *factors[:-1]]))
        raise LMMError(f"along={along!r} is unknown: use 'subjects', {others} or {factors[-1]!r}")
    points = number_array(values, "values")
    if points.ndim != 1 or len(points) == 0:
        raise LMMError("values must be a sequence of numbers, e.g. [50, 100, 200]")
    moving = _moving(truth, test, method, along)
    if along == "effect":
        if effect is not None:
            raise LMMError("effect is what along='effect' varies; leave it out")
        return points, (moving(truth, value) for value in points)
    start = moving(truth, effect)
    if along in _SHARES:
        if not ((points >= 0.0) & (points < 1.0)).all():
            raise LMMError(f"values must be shares of {along} from 0 to below 1; not {points.tolist()}")
        if along == "dropout":
            return points, (start for _ in points)
        if along == "icc":
            return points, (with_icc(start, value) for value in points.tolist())
        return points, (
            _resized(start, along, value, *left_out(start.model.design, value, _place(root, -1 - place)))
            for place, value in enumerate(points.tolist())
        )
    least = 1 if along == "observations" else 2
    if (points % 1.0 != 0.0).any() or (points < least).any():
        raise LMMError(f"values must be whole numbers of {along}, at least {least}; not {points.tolist()}")
    points = points.astype(np.int64)
    resize = _resizing(start.model, along)
    return points, (_resized(start, along, value, *resize(value)) for value in points.tolist())


_SHARES = ("icc", "missing", "dropout")
"""What is a share from 0 to below 1."""

_ALONG = ("subjects", "observations", "effect", *_SHARES)


def _moving(truth: LMMResult, test: Any, method: str, along: str) -> Callable[[LMMResult, Any], LMMResult]:
    """What sets the parameter that is tested."""
    if is_variance(test):
        sd_place(truth.model, test)
        return lambda source, value: given_sd(source, test, value)
    hypothesis = Hypothesis.of(test, truth.model, method)
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
