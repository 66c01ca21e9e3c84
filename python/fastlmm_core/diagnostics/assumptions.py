"""Tests of the assumptions that a fit rests on: normality, equal variances, independence, outlying groups.

They look at quantities that are independent and standard normal under the model: whitened residuals, and BLUPs divided
by their standard deviations; BLUPs have covariance G Z'P Z G, P = V^-1 - V^-1 X Phi X'V^-1 (Nobre and Singer 2007,
Biom. J. 49, 863-875).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import kernels
from ..design.independence import cluster_labels
from ..errors import LMMError
from ..estimation import structured_effects
from ..support.types import Array
from .autocorrelation import lag_grouping, lag_products
from .residuals import residuals

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..estimation.fit import Fit

__all__ = ["mahalanobis", "normal_scores", "residual_tests", "subject_chi2"]


SHAPIRO_LIMIT = 5000
"""Values up to which the p-value of the Shapiro-Wilk test is known."""


def normal_scores(values: ArrayLike) -> Array:
    """Expected normal order statistics for a Q-Q plot, in the order of the values.

    Of rank k the quantile of (k - 3/8) / (n + 1/4) (Blom 1958, Statistical Estimates and Transformed Beta-Variables).

    Parameters
    ----------
    values : (n,) array
        Ties share their mean rank; NaN and masked values are NaN.

    Returns
    -------
    (n,) array

    Examples
    --------
    >>> import numpy as np
    >>> from fastlmm_core.diagnostics.assumptions import normal_scores
    >>> normal_scores(np.array([2.0, 5.0, 1.0])).round(2)
    array([ 0.  ,  0.87, -0.87])
    """
    from scipy.special import ndtri

    x: Array = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    out = np.full(len(x), np.nan)
    known = np.isfinite(x)
    _, inverse, counts = np.unique(x[known], return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    out[known] = ndtri((rank - 0.375) / (known.sum() + 0.25))
    return out


# ---- groups ------------------------------------------------------------------------------------------


def _blups(result: Fit, at: int = 0) -> tuple[Array, Array]:
    """BLUPs of a grouping factor as v_i (m, q), and their covariances relative to sigma^2 (m, q, q); b_i = T v_i.

    `at` is the position of the grouping factor, T that of `_turn`: with independent residuals b_i = F v_i and
    v_i = F'Z_i'V^^-1 (y_i - X_i beta), with structured ones v_i is b_i.
    """
    model: Any = result.model
    model.require_response()
    if model.residual is not None:
        return result.blups[at], structured_effects.errorless_covariances(
            model, result.engine, result.relative_covariance, result.blup_covariances[at] / result.sigma2, at,
            result.solution.chol if result.stated is None else None,
        )  # fmt: skip
    problem, factor = model.problem, result.optimum.factor
    m, r = problem.m, problem.rank
    if len(model.factors) > 1:
        part = model.factors[at].columns
        factor = factor[part, part]
        places = problem.layout.places[at]
        engine = problem.criterion_at(result.optimum.factor)
        N = engine.conditional(precision=True)[places][:, :, : places.shape[1]]
        scores = engine.scores()[places]
        e, E = scores @ np.append(-result.solution.beta, 1.0), scores[:, :, :r]
    else:
        packed = problem.unpatterned()
        e, N = kernels.group_effects(packed, m, factor, np.append(-result.solution.beta, 1.0), precision=True)
        assert N is not None
        columns = [kernels.group_effects(packed, m, factor, unit)[0] for unit in np.eye(r + 1)[:r]]
        E = np.stack(columns, axis=2) if columns else np.zeros((m, model.structure.q, 0))
    if result.stated is None:
        half = np.linalg.solve(result.solution.chol, E.transpose(0, 2, 1))
        N = N - half.transpose(0, 2, 1) @ half
    covariance = factor.T @ N @ factor
    return problem.scale * (e @ factor), covariance


def _turn(result: Fit, part: slice) -> Array:
    """T of `_blups` (q, q)."""
    if result.model.residual is not None:
        return np.eye(part.stop - part.start)
    return np.asarray(result.model.problem.z_map[part, part] @ result.optimum.factor[part, part])


def _distances(result: Fit, at: int = 0) -> tuple[Array, NDArray[np.int64]]:
    """b_i' var(b_i)^- b_i and the rank of var(b_i), for each group."""
    v, covariance = _blups(result, at)
    values, vectors = np.linalg.eigh(covariance)
    # the eigenvalues lie between 0 (nothing known, or no variance) and the largest variance, 1 for v of unit size
    part = result.model.factors[at].columns
    size = 1.0 if result.model.residual is None else float(np.trace(result.relative_covariance[part, part]))
    live = values > 1e-10 * size
    turned = np.einsum("iab,ia->ib", vectors, v) ** 2
    parts = np.where(live, turned / np.where(live, values, 1.0), 0.0)
    return parts.sum(axis=1) / result.sigma2, np.asarray(live.sum(axis=1), dtype=np.int64)


def _upper(statistic: Array, df: NDArray[np.int64]) -> Array:
    from scipy.special import chdtrc

    return np.where(df > 0, chdtrc(np.maximum(df, 1), statistic), np.nan)


def mahalanobis(result: Fit, factor: str | None = None) -> Any:
    """Squared distances of the groups' BLUPs from zero, b_i' var(b_i)^-1 b_i, to find outlying groups.

    var(b_i) = G Z_i'P Z_i G allows for the estimated fixed effects.  At known variance parameters the distance has a
    chi^2 distribution with as many degrees of freedom as var(b_i) has dimensions (Waternaux, Laird and Ware 1989, J.
    Am. Statist. Assoc. 84, 33-41).

    Parameters
    ----------
    result : LMMResult
    factor : str, optional
        The grouping factor, where there are several; by default that with most levels.

    Returns
    -------
    frame or dict of arrays
        The grouping factor, ``distance``, ``df`` and ``p_value`` (not adjusted for the number of groups), one line per
        group.

    Raises
    ------
    LMMError
        For an unknown factor.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.assumptions import mahalanobis
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> mahalanobis(fit).head(2).round(2)
      Subject  distance  df  p_value
    0     308      3.14   2     0.21
    1     309      5.05   2     0.08
    """
    at = result.model.factors.index(result.model.factor(factor))
    distance, df = _distances(result, at)
    grouping = result.model.factors[at].grouping
    found = {grouping.name: grouping.labels, "distance": distance, "df": df, "p_value": _upper(distance, df)}
    return result.model.table(found)


def subject_chi2(result: Fit) -> Any:
    """Sums of squared whitened residuals of the groups, (y_i - X_i b)'V_i^-1 (y_i - X_i b), about chi^2 with n_i df.

    Of several nested grouping factors the groups are the levels of the coarsest one, which are independent.

    Parameters
    ----------
    result : LMMResult

    Returns
    -------
    frame or dict of arrays
        The grouping factor, ``chi2``, ``df`` and ``p_value`` (upper tail), one line per group.

    Raises
    ------
    LMMError
        For crossed grouping factors, whose levels are not independent.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.assumptions import subject_chi2
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> subject_chi2(fit).head(2).round(2)
      Subject   chi2  df  p_value
    0     308  30.85  10     0.00
    1     309   5.73  10     0.84
    """
    grouping = _independent(result)
    if grouping is None:
        raise LMMError("subject_chi2 needs independent groups: the grouping factors of this model are crossed")
    chi2, df = _group_chi2(result, grouping)
    return result.model.table({grouping.name: grouping.labels, "chi2": chi2, "df": df, "p_value": _upper(chi2, df)})


def _independent(result: Fit) -> Grouping | None:
    """The grouping factor in which all are nested, None where there is none."""
    model = result.model
    coarsest = model.factors[-1].grouping
    joined = len(model.factors) > 1 or model.residual is not None
    if joined and int(cluster_labels(model.design).max()) + 1 < len(coarsest.labels):
        return None
    return coarsest


def _group_chi2(result: Fit, grouping: Grouping) -> tuple[Array, NDArray[np.int64]]:
    index = grouping.index
    return np.bincount(index, residuals(result, "whitened") ** 2).astype(float), np.bincount(index).astype(np.int64)


# ---- tests -------------------------------------------------------------------------------------------


def _normality(values: Array) -> tuple[str, float, float, float]:
    """Name, statistic, degrees of freedom and p-value of a test of normality."""
    import warnings

    from scipy import stats

    if len(values) < 8:
        return "Shapiro-Wilk", np.nan, np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if len(values) <= SHAPIRO_LIMIT:
            statistic, p = stats.shapiro(values)
            return "Shapiro-Wilk", float(statistic), np.nan, float(p)
        statistic, p = stats.normaltest(values)
    return "D'Agostino-Pearson", float(statistic), 2.0, float(p)


def _levene(values: Array, index: NDArray[np.intp]) -> tuple[float, float, float]:
    """F, denominator degrees of freedom and p-value of one-way analysis of variance of |values| over groups."""
    from scipy.special import fdtrc

    size = np.abs(values)
    counts = np.bincount(index)
    n, m = len(size), len(counts)
    if n <= m or m < 2:
        return np.nan, np.nan, np.nan
    means = np.bincount(index, size) / counts
    within = float(np.sum((size - means[index]) ** 2))
    between = float(np.sum(counts * (means - size.mean()) ** 2))
    if within <= 0.0:
        return np.nan, np.nan, np.nan
    statistic = between / (m - 1) / (within / (n - m))
    return statistic, float(n - m), float(fdtrc(m - 1, n - m, statistic))


def _breusch_pagan(values: Array, regressor: Array) -> tuple[float, float]:
    """Koenker's studentised statistic n R^2 of squares on one regressor, chi^2 with 1 df, and its p-value."""
    from scipy.special import chdtrc

    x = regressor - regressor.mean()
    if np.linalg.norm(x) <= 1e-10 * (np.linalg.norm(regressor) + 1e-300):
        return np.nan, np.nan
    squares = values**2 - np.mean(values**2)
    statistic = len(x) * float((x @ squares) ** 2 / ((x @ x) * (squares @ squares)))
    return statistic, float(chdtrc(1.0, statistic))


def residual_tests(result: Fit, max_lag: int = 3, time: str | ArrayLike | None = None) -> Any:
    """Tests of the assumptions of the model, on quantities that are independent and standard normal under it.

    Normality of the whitened residuals and of the BLUPs divided by their marginal standard deviations (Shapiro-Wilk,
    for more than 5,000 values D'Agostino-Pearson); equal variances of the whitened residuals over groups (Levene, about
    zero) and along the marginal mean (Breusch-Pagan in the form of Koenker 1981, J. Econometrics 17, 107-112);
    autocorrelation within groups at lags 1..max_lag (sum of squared z, chi^2); outlying groups (largest Mahalanobis
    distance of BLUPs and largest chi^2 of residuals, Bonferroni adjusted).  With several grouping factors those of the
    random effects and of equal variances are made for each, lags are counted within that with most levels, and the
    chi^2 is that of the independent groups, if there are any.

    Estimated parameters have adapted to the data: in small samples the tests err on the side of large p-values.

    Parameters
    ----------
    result : LMMResult
    max_lag : int
    time : str or (nobs,) array, optional
        See `autocorrelation`.

    Returns
    -------
    frame or dict of arrays
        ``assumption``, ``test``, ``of`` (what is tested), ``statistic``, ``df``, ``p_value``; NaN where a test does not
        apply.

    Raises
    ------
    LMMError
        See `autocorrelation`.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.assumptions import residual_tests
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> residual_tests(fit)[["test", "p_value"]].head(2).round(3)
               test  p_value
    0  Shapiro-Wilk    0.000
    1  Shapiro-Wilk    0.428
    """
    model: Any = result.model
    w = residuals(result, "whitened")
    rows: list[tuple[str, str, str, float, float, float]] = []
    rows.append(("normality", *_reordered(_normality(w), "whitened residuals")))
    plain = result.effect_names == model.exog_re_names
    for at, factor in enumerate(model.factors):
        part = factor.columns
        v, covariance = _blups(result, at)
        turn = _turn(result, part)
        b = v @ turn.T
        sd = np.sqrt(np.maximum(result.sigma2 * np.einsum("ja,iab,jb->ij", turn, covariance, turn), 0.0))
        for j, name in enumerate(result.effect_names[part]):
            least = max(1e-6 * float(sd[:, j].max(initial=0.0)), 1e-5 * np.sqrt(result.covariance[part, part][j, j]))
            live = sd[:, j] > max(least, 1e-300)
            scaled = b[live, j] / sd[live, j] if result.covariance[part, part][j, j] > 0.0 else np.empty(0)
            of = f"{name} ({factor.grouping.name})" if plain and len(model.factors) > 1 else name
            rows.append(("normality", *_reordered(_normality(scaled), f"random effects: {of}")))
    for factor in model.factors:
        statistic, df, p = _levene(w, factor.grouping.index)
        what = f"whitened residuals over {factor.grouping.name}"
        rows.append(("equal variance", "Levene", what, statistic, df, p))
    statistic, p = _breusch_pagan(w, result.population_mean)
    rows.append(("equal variance", "Breusch-Pagan", "whitened residuals along the marginal mean", statistic, 1.0, p))
    if not 1 <= max_lag < max(result.nobs, 2):
        raise LMMError(f"max_lag={max_lag} must be at least 1 and below the number of rows, {result.nobs}")
    found, pairs = lag_products(result, int(max_lag), time, lag_grouping(result, None))
    used = pairs > 0
    q_statistic = float(np.sum(pairs[used] * found[used] ** 2)) if used.any() else np.nan
    p = float(_upper(np.array([q_statistic]), np.array([used.sum()], dtype=np.int64))[0])
    rows.append(("independence", "Box-Pierce", f"lags 1 to {max_lag}", q_statistic, float(used.sum()), p))
    for at, factor in enumerate(model.factors if model.structure.q else ()):
        rows.append(_outlier("Mahalanobis", factor.grouping, *_distances(result, at)))
    independent = _independent(result)
    if independent is not None:
        rows.append(_outlier("chi^2", independent, *_group_chi2(result, independent)))
    names = ("assumption", "test", "of", "statistic", "df", "p_value")
    return result.model.table({name: np.array([row[j] for row in rows]) for j, name in enumerate(names)})


def _outlier(
    test: str, grouping: Grouping, values: Array, df: NDArray[np.int64]
) -> tuple[str, str, str, float, float, float]:
    """The group whose chi^2 statistic is least likely, adjusted for their number."""
    each = _upper(values, df)
    if not np.isfinite(each).any():
        return "outliers", test, grouping.name, np.nan, np.nan, np.nan
    i = int(np.nanargmin(each))
    p = float(-np.expm1(len(each) * np.log1p(-each[i]))) if each[i] < 1.0 else 1.0
    return "outliers", test, f"{grouping.name} {grouping.labels[i]}", float(values[i]), float(df[i]), p


def _reordered(found: tuple[str, float, float, float], what: str) -> tuple[str, str, float, float, float]:
    return found[0], what, *found[1:]
