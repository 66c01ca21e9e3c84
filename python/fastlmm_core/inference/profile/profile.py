"""Profile likelihood: confidence limits and paths of every parameter.

Profiles of standard deviations, correlations and sigma are of the REML criterion or of the ML deviance, those of the
fixed effects, on which the REML criterion does not depend, always of the ML deviance; all of lme4's are (Bates et al.
2015, J. Stat. Softw. 67(1), sec. 5.1).  With few groups the REML profile covers what it should where the ML profile is
too low.  Limits, where the profile has risen by a quantile of chi-squared with one degree of freedom, are solved for
and not interpolated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LMMError
from ...support.arguments import checked, outside
from ...support.checks import check_level
from ...support.display import Cells, Shown
from ...support.distributions import quantile
from ...support.progress import progress_bar
from ...support.text_tables import variance_cells
from ...support.types import Array
from .coefficients import CoefficientProfiler, Parameter, Point, ProfileError
from .points import Profiler, parameters_of
from .structured import StructuredProfiler, structured_parameters

if TYPE_CHECKING:
    from ...estimation.fit import Fit

__all__ = ["ProfileResult", "confidence_limits", "profile"]


PER_SIDE = 8
"""Points of a path on each side of the minimum."""


def _parameters_of(result: Fit) -> list[Parameter]:
    """All parameters that can be profiled."""
    return structured_parameters(result) if _structured(result) else parameters_of(result)


def _structured(result: Fit) -> bool:
    """Whether variances are functions of parameters of structures."""
    return result.model.residual is not None or result.model.structure.restricted


def _chosen(result: Fit, parameters: str | Sequence[str] | None) -> list[Parameter]:
    known = _parameters_of(result)
    if parameters is None:
        return known
    wanted = [parameters] if isinstance(parameters, str) else list(parameters)
    out: list[Parameter] = []
    for name in wanted:
        if name in ("fixed", "random"):
            found = [p for p in known if (p.kind == "beta") == (name == "fixed")]
        else:
            found = [p for p in known if p.name == name]
        if not found:
            raise LMMError(
                f"parameters: there is no {name!r}; use 'fixed', 'random' or some of {', '.join(p.name for p in known)}"
            )
        out += [p for p in found if p not in out]
    return out


class _Profilers:
    """Profilers of a fit: of variance parameters by the criterion chosen, of fixed effects by ML."""

    def __init__(self, result: Fit, reml: bool | None) -> None:
        self.result = result
        self.reml = result.reml if reml is None else reml
        self._made: dict[bool, CoefficientProfiler] = {}

    def of(self, parameter: Parameter) -> CoefficientProfiler:
        """The profiler of a parameter; made when it is needed."""
        return self.by(self.reml and parameter.kind != "beta")

    def by(self, reml: bool) -> CoefficientProfiler:
        """The profiler of a criterion."""
        if reml not in self._made:
            self._made[reml] = (StructuredProfiler if _structured(self.result) else Profiler)(self.result, reml)
        return self._made[reml]


@checked
class ProfileResult(Shown):
    """Profiles of the deviance; prints as text and shows as HTML in notebooks.

    The signed root zeta = sign(value - estimate) sqrt(deviance - minimum) is standard normal where the parameter has
    the value, so that a straight line means that the Wald interval is as good.

    Attributes
    ----------
    fit : LMMResult
        The fit of which the standard deviations, correlations and sigma are profiled.
    reml : bool
        Whether these profiles are of the REML criterion; those of fixed effects are always of the ML deviance.
    level : float
        Confidence level up to which the paths reach.
    names : tuple of str
        Of the parameters profiled.
    notes : dict
        Parameter to a message, where a path ends early: at 0, at +-1, or because a point was not found.
    """

    def __init__(
        self, profilers: _Profilers, chosen: list[Parameter], level: float,
        paths: dict[str, list[tuple[float, Point]]], notes: dict[str, str],
    ) -> None:  # fmt: skip
        self.fit = profilers.by(profilers.reml).fit
        self.reml = profilers.reml
        self.level = level
        self.names = tuple(p.name for p in chosen)
        self.notes = notes
        self._profilers = profilers
        self._chosen = chosen
        self._paths = paths

    def _path(self, parameter: str) -> list[tuple[float, Point]]:
        if parameter not in self._paths:
            raise LMMError(f"parameter: {parameter!r} was not profiled; use one of {', '.join(self.names) or 'none'}")
        return self._paths[parameter]

    def zeta(self, parameter: str) -> tuple[Array, Array]:
        """The path of one parameter.

        Parameters
        ----------
        parameter : str

        Returns
        -------
        values, roots : (k,) arrays
            Values of the parameter, ascending, and zeta there.

        Raises
        ------
        LMMError
            For a parameter that was not profiled.
        """
        path = self._path(parameter)
        return np.array([point.value for _, point in path]), np.array([zeta for zeta, _ in path])

    def conf_int(self, level: float = 0.95) -> Any:
        """Profile confidence limits, solved for as by `confidence_limits`.

        Parameters
        ----------
        level : float
            Any, not only up to that of the paths.

        Returns
        -------
        frame or dict of arrays
            Columns term, estimate (where the criterion is least), conf_low, conf_high, note; a limit that could not be
            found is NaN, and the note says why.

        Raises
        ------
        LMMError
            For a level outside (0, 1).
        """
        return self.fit.model.table(_limits(self._profilers, self._chosen, level))

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        names = [p.name for p in _parameters_of(self.fit)]
        out: dict[str, list[Any]] = {name: [] for name in ("term", "zeta", *names)}
        for parameter in self._chosen:
            for zeta, point in self._paths[parameter.name]:
                out["term"].append(parameter.name)
                out["zeta"].append(zeta)
                for name, value in self._profilers.of(parameter).everything(parameter, point).items():
                    out[name].append(value)
        return out

    def to_frame(self) -> Any:
        """All paths: one row per point, with the values of all parameters there.

        Returns
        -------
        frame or dict of arrays
            Columns term, zeta, and one for each parameter of the model.
        """
        return self.fit.model.table(self._columns)

    @cached_property
    def _limits95(self) -> dict[str, list[Any]]:
        return _limits(self._profilers, self._chosen, 0.95)

    def _shown(self) -> Iterator[str | Cells]:
        yield f"Profiles of the deviance of {len(self.names)} parameters; 95 % limits"
        columns = [variance_cells(self._limits95[name]) for name in ("estimate", "conf_low", "conf_high")]
        yield Cells(["", "Estimate", "2.5 %", "97.5 %"], [list(row) for row in zip(self.names, *columns, strict=True)])
        yield from (f"{name}, {note}" for name, note in self.notes.items())


def _rise(level: float) -> float:
    check_level(level)
    return float(quantile(0.5 + 0.5 * level, None)) ** 2


def _limits(profilers: _Profilers, chosen: list[Parameter], level: float) -> dict[str, list[Any]]:
    """Columns term, estimate, conf_low, conf_high and note."""
    rise = _rise(level)
    columns: dict[str, list[Any]] = {name: [] for name in ("term", "estimate", "conf_low", "conf_high", "note")}
    for parameter in chosen:
        profiler = profilers.of(parameter)
        columns["term"].append(parameter.name)
        columns["estimate"].append(profiler.estimate(parameter))
        notes = []
        for side, outward in (("conf_low", -1), ("conf_high", 1)):
            try:
                columns[side].append(profiler.reach(parameter, outward, rise).value)
            except ProfileError as error:
                columns[side].append(float("nan"))
                notes.append(f"{'lower' if outward < 0 else 'upper'}: {error}")
        columns["note"].append("; ".join(notes))
    return columns


def confidence_limits(
    result: Fit,
    level: float = 0.95,
    parameters: str | Sequence[str] | None = None,
    reml: bool | None = None,
) -> dict[str, tuple[float, float]]:
    """Profile-likelihood confidence limits, each solved for.

    The limits are where the deviance, minimised over all other parameters, exceeds its minimum by the quantile of
    chi-squared with one degree of freedom.  The limit of a standard deviation is 0, and that of a correlation +-1,
    where the deviance does not rise so far.

    Parameters
    ----------
    result : LMMResult
    level : float
        Between 0 and 1.
    parameters : str or sequence of str, optional
        Names (``sd_x|g``, ``cor_x.y|g``, ``sigma``, names of coefficients), "fixed" or "random" (with sigma); by
        default all.
    reml : bool, optional
        The criterion profiled for standard deviations, correlations and sigma; by default that of the fit.

    Returns
    -------
    dict
        Parameter to (lower, upper).

    Raises
    ------
    LMMError
        For an unknown parameter or a level outside (0, 1).

    Warns
    -----
    RuntimeWarning
        For limits that could not be found, with the reason; they are NaN.
    """
    result.require_exact("profiles")
    chosen = _chosen(result, parameters)
    _rise(level)
    table = _limits(_Profilers(result, reml), chosen, level)
    failed = [f"{name}, {note}" for name, note in zip(table["term"], table["note"], strict=True) if note]
    if failed:
        warnings.warn(f"limits not found: {'; '.join(failed)}", RuntimeWarning, stacklevel=outside())
    return dict(zip(table["term"], zip(table["conf_low"], table["conf_high"], strict=True), strict=True))


def _path(
    profiler: CoefficientProfiler, parameter: Parameter, rise: float
) -> tuple[list[tuple[float, Point]], list[str]]:
    """Points from the lowest to the highest value, and notes."""
    sides: dict[int, list[tuple[float, Point]]] = {-1: [], 1: []}
    notes = []
    for outward, side in sides.items():
        guide: Point | None = None
        for k in range(1, PER_SIDE + 1):
            target = rise * (k / PER_SIDE) ** 2
            try:
                guide = profiler.reach(parameter, outward, target, guide)
            except ProfileError as error:
                notes.append(f"{'lower' if outward < 0 else 'upper'} side: {error}")
                break
            if guide.rise < target:
                if guide.rise > 0.0:
                    side.append((outward * float(np.sqrt(guide.rise)), guide))
                notes.append(f"{'lower' if outward < 0 else 'upper'} side: ends at {guide.value:g}")
                break
            side.append((outward * float(np.sqrt(target)), guide))
    centre = Point(profiler.estimate(parameter), 0.0, profiler.optimum)
    return [*reversed(sides[-1]), (0.0, centre), *sides[1]], notes


def profile(
    result: Fit,
    parameters: str | Sequence[str] | None = None,
    level: float = 0.99,
    progress: bool | None = None,
    reml: bool | None = None,
) -> ProfileResult:
    """Profile the deviance.

    Parameters
    ----------
    result : LMMResult
    parameters : str or sequence of str, optional
        Names (``sd_x|g``, ``cor_x.y|g``, ``sigma``, names of coefficients), "fixed" or "random" (with sigma); by
        default all that can be estimated.
    level : float
        Confidence level that the paths reach.
    progress : bool, optional
        Show a progress bar (needs tqdm); by default in interactive sessions.
    reml : bool, optional
        The criterion profiled for standard deviations, correlations and sigma; by default that of the fit.

    Returns
    -------
    ProfileResult

    Raises
    ------
    LMMError
        For an unknown parameter or a level outside (0, 1).
    """
    result.require_exact("profiles")
    rise = _rise(level)
    dropped = set(result.dropped_columns)
    chosen = [p for p in _chosen(result, parameters) if not (p.kind == "beta" and p.name in dropped)]
    profilers = _Profilers(result, reml)
    paths, notes = {}, {}
    for parameter in _watched(chosen, progress):
        paths[parameter.name], found = _path(profilers.of(parameter), parameter, rise)
        if found:
            notes[parameter.name] = "; ".join(found)
    return ProfileResult(profilers, chosen, level, paths, notes)


def _watched(parameters: list[Parameter], progress: bool | None) -> Iterator[Parameter]:
    bar = progress_bar(progress, len(parameters), "parameter")
    for parameter in parameters:
        yield parameter
        if bar is not None:
            bar.update(1)
    if bar is not None:
        bar.close()
