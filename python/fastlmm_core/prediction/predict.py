"""Prediction for populations, known subjects and subjects with a few observations.

For a row (x, z) and random effects b of all levels with cross-products A = Z'Z and c = Z'(y - X beta):

    M     = L (I + L'A L)^-1 L',  G^ = L L'      (conditional covariance of b / sigma^2)
    b^    = M c                                  (BLUP)
    error of x'beta^ + z'b^ has variance sigma^2 (d'H^-1 d + z'M z),  d = x - X'Z M z

(Henderson 1975, Biometrics 31, eq. 3 and 5), in the conditioned coordinates of the problem.  With one grouping factor
A and M fall apart into groups; with several the root of M comes from `conditional`.

The variance of a prediction, with that of a new observation where one is predicted, is a function sigma^2 v of the
variance parameters, whose degrees of freedom follow by the delta method as in `information` (Satterthwaite; for
predictions in mixed models Francq, Lin and Hoyer 2019, Stat. Med. 38, 5603-5622).  Along the unit direction D_k of G^

    dv = h'E'D_k E h summed over all levels - 2 (E h)'D_k P z + (P z)'D_k P z,    h = H^-1 d,

with E = P Z'X and P = (I + A G^)^-1 of the row's own level; P z = z for a level without observations.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import vech_positions
from ..errors import LMMError
from ..estimation.information import moments
from ..inference.means.response import response_scale
from ..inference.options import MOMENT_DDF, check_options, known_df
from ..inference.wald import why_undetermined
from ..support.arguments import outside
from ..support.blas_threads import quiet_product
from ..support.checks import check_level, row_values
from ..support.distributions import quantile
from ..support.hints import option
from ..support.types import Array, Index
from ..tables.columns import first_rows
from ..tables.lazy import collected
from ..tables.rows import CallerRows, rows_of_table
from .gaps import complete
from .given_data import (
    Conditional,
    conditioned_rows,
    conditioned_x,
    lost_columns,
    observed_rows,
    of_one_factor,
    of_several_factors,
)
from .kept_effects import given_effects, places_of_given, values_of_given
from .new_rows import NewRows, chosen_factors, read_rows
from .one_factor import LEAST_DF, OneFactorEffects, least_stratum, of_estimation, solved
from .structured_rows import Asked, structured_rows

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["Predicted", "predicted", "prediction"]


HELD = 1 << 20
"""Numbers in the derivatives of the variances of a piece of the rows."""


class Predicted(NamedTuple):
    """Predictions of rows.

    Attributes
    ----------
    caller : CallerRows
        The rows in the caller's table.
    mean : (n,) array
    std_error : (n,) array or None
        Of the mean, or of a new observation; None where no interval was asked for.
    df : (n,) array or None
        Degrees of freedom of the square of the standard error.
    lost : (n, d) bool array or None
        On which dropped columns of X the rows depend, where any do: these rows are NaN.
    """

    caller: CallerRows
    mean: Array
    std_error: Array | None = None
    df: Array | None = None
    lost: NDArray[np.bool_] | None = None


def prediction(
    result: Fit, data: Any, effects: Any = "population", *, new_levels: str = "error", interval: str | None = None,
    level: float = 0.95, observed: Any = None, offset: Any = None, weights: Any = None, ddf: str = "satterthwaite",
    information: str = "auto", random_effects: Any = None, missing: str = "raise", transform: str = "none",
) -> Any:  # fmt: skip
    """See `LMMResult.predict`."""
    check_level(level)
    if transform not in ("none", "response"):
        raise LMMError(f"transform={transform!r} is unknown: use 'none' or 'response'")
    scale = response_scale(result, transform)
    if missing not in ("raise", "nan"):
        raise LMMError(f"missing={missing!r} is unknown: use 'raise' or 'nan'")
    whole = None
    if missing == "nan" and data is not None:
        model = result.model
        chosen = tuple(f.grouping.name for f in model.factors) if interval == "prediction" else ()
        data = collected(data)
        asked = weights is None and _weights_matter(model, effects, interval)
        whole = complete(model, data, chosen or chosen_factors(model, effects), asked)
        if offset is not None:
            offset = whole.values(offset, "offset")
        if weights is not None:
            weights = whole.values(weights, "weights")
        data = rows_of_table(data, whole.used)
    found = predicted(
        result, data, effects, new_levels, interval, observed=observed, offset=offset, weights=weights, ddf=ddf,
        information=information, random_effects=random_effects,
    )  # fmt: skip
    caller = found.caller if whole is None else whole
    if found.lost is not None:
        rows = np.flatnonzero(found.lost.any(axis=1))
        rows = rows if whole is None else whole.positions[rows]
        warnings.warn(
            f"predict(): {first_rows(rows)} of data cannot be estimated and {'are' if len(rows) > 1 else 'is'} NaN: "
            f"{why_undetermined(result.model, found.lost)}",
            UserWarning,
            stacklevel=outside(),
        )
    what = "mean" if scale is None else scale.what
    if found.std_error is None:
        return caller.series(found.mean if scale is None else scale.back(found.mean), what)
    half = quantile(0.5 + 0.5 * level, found.df) * found.std_error
    estimates = {
        "estimate": found.mean, "std_error": found.std_error,
        "conf_low": found.mean - half, "conf_high": found.mean + half, "notes": (),
    }  # fmt: skip
    shown = estimates if scale is None else scale.means(estimates)
    columns = {what: shown["estimate"], "std_error": shown["std_error"], "df": found.df}
    return caller.table(columns | {name: shown[name] for name in ("conf_low", "conf_high")})


def predicted(
    result: Fit, data: Any, effects: Any, new_levels: str, interval: str | None, *, observed: Any = None,
    offset: Any = None, weights: Any = None, ddf: str = "normal", information: str = "auto",
    random_effects: Any = None,
) -> Predicted:  # fmt: skip
    """Means, and where `interval` is given standard errors and degrees of freedom; see `LMMResult.predict`."""
    model, problem = result.model, result.model.problem
    chosen = chosen_factors(model, effects)
    structured = model.design.residual is not None
    given = None if random_effects is None else given_effects(result, random_effects)
    if given is not None:
        if chosen or observed is not None:
            raise LMMError("random_effects= are values: give them without effects= and observed=, which ask for BLUPs")
        chosen = tuple(f.grouping.name for f in model.factors if f.grouping.name in given)
    if new_levels not in ("error", "population"):
        raise LMMError(f"new_levels={new_levels!r} is unknown: use 'error' or 'population'")
    if interval not in (None, "confidence", "prediction"):
        near = option("interval", interval, ("confidence", "prediction"))
        raise LMMError(f"interval={interval!r} is unknown: use 'confidence', 'prediction' or None{near}")
    check_options(ddf, information)
    every = tuple(f.grouping.name for f in model.factors)
    if not structured and interval is not None and chosen and len(every) > 1 and ddf.startswith("kenward-roger"):
        raise LMMError(
            f"ddf={ddf!r} with several grouping factors is for effects='population': use ddf='satterthwaite' for those "
            "of groups"
        )
    with_effects = chosen if model.structure.q else ()
    every = every if model.structure.q else ()
    designs = every if interval == "prediction" else with_effects
    matter = weights is None and _weights_matter(model, effects, interval)
    rows = read_rows(model, data, "data", designs, with_effects, weights=matter)
    given_offset = (
        rows.offset if offset is None else row_values(rows.caller.values(offset, "offset"), "offset", len(rows.X))
    )
    if given_offset is None and model.has_offset:
        raise LMMError("the model has an offset: give that of the new rows as offset= (0 for none)")
    if weights is not None:
        weights = row_values(rows.caller.values(weights, "weights"), "weights", len(rows.X), True)
    elif matter:
        weights = rows.weights
    mean = quiet_product(rows.X, np.nan_to_num(result.beta))
    lost = None if rows.of_fit else lost_columns(result, rows.X)
    if lost is not None and lost.any():
        mean[lost.any(axis=1)] = np.nan
    else:
        lost = None
    if given_offset is not None:
        mean = mean + given_offset
    if result.stated is not None and ddf in ("kenward-roger", "residual"):
        raise LMMError(f"ddf={ddf!r} is for estimates: stated parameters are taken as known; leave ddf out")
    levels = [np.full(len(mean), -1, dtype=np.intp) for _ in every]
    conditional: Conditional | None = None
    if given is not None:
        levels = places_of_given(model, rows, given, new_levels)
    if structured:
        told_by_all = chosen == tuple(f.grouping.name for f in model.factors) and (effects == "all" or not every)
        asked = Asked(
            data,
            () if given is not None else with_effects,
            told_by_all,
            new_levels,
            interval,
            weights,
            ddf,
            information,
        )
        return _structured(result, rows, asked, mean, lost, observed, given, levels)
    if given is None and chosen:
        finder = of_one_factor if len(every) == 1 else of_several_factors
        levels, conditional = finder(result, rows, chosen, observed, new_levels, interval is not None)
    z = [] if rows.Z is None else conditioned_rows(model, rows.Z)
    if conditional is not None:
        carried, variance = conditional.at(z, levels)
        mean = mean + problem.scale * carried[:, -1]
    elif any((position >= 0).any() for position in levels):
        values = result.blups if given is None else values_of_given(model, given)
        mean = mean + _effects_part(model, rows, levels, values)
    if interval is None:
        return Predicted(rows.caller, mean, lost=lost)
    if conditional is None:
        variance = np.zeros(len(mean))
    # stated coefficients have no error
    whitened = np.zeros((len(mean), problem.rank))
    if result.stated is None:
        direction = conditioned_x(problem, rows.X)
        whitened = solved(result.solution.chol, direction if conditional is None else direction - carried[:, :-1])
    variance = variance + np.einsum("ij,ij->i", whitened, whitened)
    # rows of Z for levels without observations, whose whole variance counts for a new observation
    fresh = np.zeros((len(mean), model.structure.q))
    if interval == "prediction":
        for f, part, position in zip(model.factors, z, levels, strict=True):
            fresh[:, f.columns] = np.where(position[:, None] < 0, part, 0.0)
        turned = fresh @ result.optimum.factor
        variance += np.einsum("ij,ij->i", turned, turned)
        w = model.weights if weights is None and data is None else weights
        variance += 1.0 if w is None else 1.0 / w
    if result.stated is not None:
        df = np.full(len(mean), np.inf)
    elif ddf not in MOMENT_DDF:
        df = known_df(model, ddf, rows.X)
    else:
        variance, df = _freedom(result, whitened, variance, fresh, z, levels, conditional, (ddf, information))
    error = np.sqrt(result.sigma2 * variance)
    return _estimable(rows, mean, error, df, lost)


def _structured(
    result: Fit, rows: NewRows, asked: Asked, mean: Array, lost: Any, observed: Any, given: Any, levels: list[Index]
) -> Predicted:
    """Predictions where the residuals have a structure, from the means x'beta.

    Parameters
    ----------
    result : LMMResult
    rows : NewRows
    asked : Asked
    mean : (n,) array
    lost : bool array or None
        See `Predicted`.
    observed : as for `LMMResult.predict`
    given : mapping or None
        Random effects by factor that are taken as known.
    levels : list of (n,) int arrays
        The level of each row among these.
    """
    model = result.model
    if given is not None:
        mean = mean + _effects_part(model, rows, levels, values_of_given(model, given))
        if rows.Z is not None:
            known = [
                np.repeat(at[:, None] >= 0, f.stop - f.start, axis=1)
                for f, at in zip(model.factors, levels, strict=True)
            ]
            rows = replace(rows, Z=np.where(np.concatenate(known, axis=1), 0.0, rows.Z))
    elif asked.data is None and asked.interval is None and observed is None:
        if asked.chosen:
            own = [
                f.grouping.index if f.grouping.name in asked.chosen else np.full(len(mean), -1) for f in model.factors
            ]
            mean = mean + _effects_part(model, rows, own, result.blups)
        return Predicted(rows.caller, mean, lost=lost)
    extra = None
    if observed is not None and (asked.chosen or asked.all_told):
        names = tuple(f.grouping.name for f in model.factors) if model.structure.q else ()
        extra = observed, observed_rows(result, observed, names)
    elif asked.interval is None and not asked.chosen and not asked.all_told:
        return Predicted(rows.caller, mean, lost=lost)
    add, error, df = structured_rows(result, rows, asked, extra, partial(conditioned_x, model.problem))
    mean = mean + add
    if error is None or df is None:
        return Predicted(rows.caller, mean, lost=lost)
    return _estimable(rows, mean, error, df, lost)


def _estimable(rows: NewRows, mean: Array, error: Array, df: Array, lost: NDArray[np.bool_] | None) -> Predicted:
    """Predictions with errors, NaN where the mean is."""
    error[np.isnan(mean)] = np.nan
    return Predicted(rows.caller, mean, error, np.where(np.isnan(mean), np.nan, df), lost)


def _freedom(
    result: Fit, whitened: Array, variance: Array, fresh: Array, z: list[Array], levels: list[Index],
    conditional: Conditional | None, asked: tuple[str, str],
) -> tuple[Array, Array]:  # fmt: skip
    """Variances relative to sigma^2, which Kenward and Roger's method adjusts, and their degrees of freedom (n,).

    Parameters
    ----------
    result : LMMResult
    whitened : (n, r) array
        L^-1 d, with H = L L'.
    variance : (n,) array
    fresh : (n, q) array
        z where the level has no observations and its variance counts, 0 elsewhere.
    z : list of (n, q_f) arrays
    levels : list of (n,) arrays
    conditional : OneFactorEffects, or posterior of several factors, or None
    asked : (str, str)
        `ddf` and `information`.
    """
    ddf, information = asked
    one_factor = isinstance(conditional, OneFactorEffects)
    normal = np.zeros(len(variance), dtype=bool)
    if conditional is not None and not one_factor:
        normal = np.any([position >= 0 for position in levels], axis=0)
    if (normal | (variance == 0.0)).all() and not (one_factor and ddf.startswith("kenward-roger")):
        return variance, np.full(len(variance), np.inf)
    # an interval for one group allows that groups differ where none is seen to
    found = moments(result, ddf, "expected" if one_factor and information == "auto" else information)
    own, carried = fresh, np.zeros_like(fresh)
    adjusted = np.zeros(len(variance))
    if found.adjustment is not None:
        adjusted = ((whitened @ found.adjustment) * whitened).sum(axis=1)
    seen, told = np.empty(0, dtype=np.intp), variance.copy()
    if isinstance(conditional, OneFactorEffects):
        seen = np.flatnonzero(levels[0] >= 0)
        at = levels[0][seen]
        h = solved(result.solution.chol.T, whitened[seen])
        own[seen], carried[seen] = conditional.turned(z[0][seen], at, h)
        if found.adjustment is not None:
            adjusted[seen] += of_estimation(found, conditional, at, whitened[seen], own[seen], carried[seen])
            # the degrees of freedom of a population's variance are those without the adjustment
            told[seen] += adjusted[seen]
    lower, upper = vech_positions(fresh.shape[1])
    both = np.where(lower == upper, 0.5, 1.0)[:, None]
    df = np.empty(len(variance))
    step = max(1, HELD // max(1, len(lower) * max(1, whitened.shape[1])))
    for begin in range(0, len(df), step):
        part = slice(begin, begin + step)
        one, other = own[part].T, (own[part] - 2.0 * carried[part]).T
        slopes = found.slopes_of(whitened[part]) + both * (one[lower] * other[upper] + one[upper] * other[lower])
        df[part] = found.df_of(told[part], slopes)
    if len(seen):
        df[seen] = np.maximum(df[seen], LEAST_DF if found.adjustment is None else least_stratum(result))
    df[normal | (variance + adjusted == 0.0)] = np.inf
    return variance + adjusted, df


def _effects_part(model: Model, rows: NewRows, levels: list[Index], values: tuple[Array, ...]) -> Array:
    """Z b of the levels found."""
    assert rows.Z is not None
    out = np.zeros(len(rows.X))
    for f, b, position in zip(model.factors, values, levels, strict=True):
        own = np.einsum("ij,ij->i", rows.Z[:, f.columns], b[position])
        out += np.where(position >= 0, own, 0.0)
    return out


def _weights_matter(model: Model, effects: Any, interval: str | None) -> bool:
    """Whether predictions depend on the weights of the rows: by the error of each, or what it shares with others."""
    return interval == "prediction" or (model.design.residual is not None and effects != "population")
