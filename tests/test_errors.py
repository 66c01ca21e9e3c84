"""Bad input is refused before anything is computed, by a message that names the argument, the place and the remedy.

What only looks bad (columns of X that depend on each other, an optimiser stopped early) is not refused but reported.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core import LMMError

N, M = 60, 12


def good():
    """Arrays that can be fitted; X and Z are different arrays."""
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(M), N // M)
    X = np.column_stack([np.ones(N), rng.standard_normal(N)])
    Z = np.column_stack([np.ones(N), rng.standard_normal(N)])
    b = rng.standard_normal((M, 2))
    y = X @ [1.0, 2.0] + np.sum(Z * b[groups], axis=1) + 0.5 * rng.standard_normal(N)
    return {"y": y, "X": X, "Z": Z, "groups": groups}


def table():
    d = good()
    return {
        "y": d["y"], "x": d["X"][:, 1], "z": d["Z"][:, 1], "g": np.array([f"g{k:02d}" for k in d["groups"]]),
        "w": np.linspace(0.5, 2.0, N), "o": np.linspace(-1.0, 1.0, N),
    }  # fmt: skip


def changed(values, where, value):
    out = np.array(values, dtype=float)
    out[where] = value
    return out


def model(**changes):
    d = good() | changes
    return flc.LinearMixedModel(d.pop("y"), d.pop("X"), d.pop("Z"), d.pop("groups"), **d)


# ------------------------------------------------------------------------------------------------------------
# arrays


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "where", "place"),
    [
        ("y", 17, "row 17"),
        ("X", (17, 1), "row 17, column 1"),
        ("X", (0, 0), "row 0, column 0"),
        ("Z", (17, 1), "row 17, column 1"),
        ("Z", (59, 0), "row 59, column 0"),
        ("offset", 17, "row 17"),
        ("weights", 17, "row 17"),
    ],
)
def test_values_that_are_not_finite(name, where, place, value, structure):
    d = good() | {"weights": np.ones(N), "offset": np.zeros(N)}
    bad = changed(d[name], where, value)
    with pytest.raises(LMMError, match=rf"^{name} .*{value}.*{place}.*(remove|impute)"):
        model(**{name: bad}, structure=structure)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_in_a_single_column_of_z(value):
    bad = changed(np.ones((N, 1)), (5, 0), value)
    with pytest.raises(LMMError, match=rf"^Z has .*{value} at row 5, column 0"):
        model(Z=bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("q", [1, 2])
def test_values_that_are_not_finite_where_x_is_z(value, q):
    both = changed(good()["X"][:, :q], (30, q - 1), value)
    with pytest.raises(LMMError, match=rf"^[XZ] has .*{value} at row 30, column {q - 1}"):
        model(X=both, Z=both)


def test_the_number_of_bad_values_is_told():
    with pytest.raises(LMMError, match=r"^y has 3 values that are not finite \(first: nan at row 4\)"):
        model(y=changed(good()["y"], [4, 9, 30], np.nan))


@pytest.mark.parametrize(
    "labels",
    [
        changed(good()["groups"], 17, np.nan),
        np.array(["a", "b", "c", None] * 15, dtype=object),
        np.repeat(np.array(["2020-01-01", "2020-01-02", "2020-01-03", "NaT"], dtype="datetime64[D]"), 15),
    ],
    ids=["nan", "none", "nat"],
)
def test_missing_labels(labels):
    first = {0: 17, 1: 3, 2: 45}[{"f": 0, "O": 1, "M": 2}[labels.dtype.kind]]
    with pytest.raises(LMMError, match=rf"^groups has missing labels \(first: row {first}\); remove"):
        model(groups=labels)


def test_an_infinite_label_is_no_label():
    with pytest.raises(LMMError, match=r"groups .*row 17"):
        model(groups=changed(good()["groups"], 17, np.inf))


@pytest.mark.parametrize("name", ["X", "Z", "groups", "weights", "offset"])
@pytest.mark.parametrize("n", [N - 1, N + 1, 1, 0])
def test_lengths_that_differ(name, n):
    d = good() | {"weights": np.ones(N), "offset": np.zeros(N)}
    other = np.resize(d[name], (n, *np.shape(d[name])[1:]))
    with pytest.raises(LMMError, match=rf"^{name} (has {n} rows but y has {N}; give one row per|is empty)"):
        model(**{name: other})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.array(["1.0"] * N)}, r"^y must hold numbers, not text \(<U3\); convert"),
        ({"y": np.array(["high"] * N, dtype=object)}, r"^y must hold numbers, not text \(object\); convert"),
        ({"y": np.full(N, 1j)}, r"^y must hold numbers, not complex128"),
        ({"y": np.full(N, "2020-01-01", dtype="datetime64[D]")}, r"^y must hold numbers, not datetime64\[D\]"),
        ({"X": np.full((N, 2), "a")}, r"^X must hold numbers"),
        ({"Z": np.full((N, 2), "a")}, r"^Z must hold numbers"),
        ({"weights": "w"}, r"^weights must hold numbers"),
        ({"offset": np.full(N, "a")}, r"^offset must hold numbers"),
        ({"y": np.ones((N, 2))}, r"^y must have 1 dimension, not the shape \(60, 2\)"),
        ({"y": 3.0}, r"^y must have 1 dimension, not the shape \(\)"),
        ({"X": np.ones((N, 2, 2))}, r"^X must have 2 dimensions, not the shape \(60, 2, 2\)"),
        ({"Z": np.ones((N, 2, 2))}, r"^Z must have 2 dimensions"),
        ({"weights": np.ones((N, 1))}, r"^weights must have 1 dimension"),
        ({"groups": np.ones((N, 2))}, r"^groups must be one-dimensional, not of shape \(60, 2\); give one label"),
        ({"groups": None}, r"^groups is missing: give the group of each row"),
        ({"Z": np.empty((N, 0))}, r"^Z has no columns: give at least one"),
        ({"structure": "banded"}, r"^structure='banded' is unknown: use 'full' or 'diagonal'"),
        ({"exog_names": ["a"]}, r"^exog_names has 1 names for 2 columns"),
        ({"exog_re_names": ["a", "b", "c"]}, r"^exog_re_names has 3 names for 2 columns"),
        ({"groups": np.zeros(N, dtype=int)}, r"^the grouping factor 'group' has one level.*use"),
        ({"groups": np.full(N, "only")}, r"^the grouping factor 'group' has one level"),
        ({"groups": np.arange(N), "Z": np.ones((N, 1))}, r"^every level of 'group' has one observation.*use"),
        ({"groups": np.arange(N)}, r"^every level of 'group' has one observation: the variance of 'z0'.*leave"),
        (
            {"groups": np.arange(N) // 2, "Z": np.column_stack([np.ones(N), np.arange(N) % 2])},
            r"^the residual variance and the variances of 'z0' and 'z1' and the covariance of 'z0' with 'z1' in "
            r"\(0 \+ z0 \+ z1 \| group\) cannot be told apart: .*use fewer random effects for each level of 'group'",
        ),
        ({"X": np.random.default_rng(1).standard_normal((N, N))}, r"^there are 60 observations for 60 fixed effects"),
        ({"y": np.full(N, 3.7)}, r"^y is constant: .*check"),
        ({"y": np.zeros(N)}, r"^y is constant"),
        ({"y": good()["X"] @ [1.0, 2.0]}, r"^y is reproduced exactly by the fixed effects"),
        ({"y": 1e-180 * np.arange(N) ** 2}, r"^y is so small that its squares vanish: rescale y"),
        ({"y": np.arange(M, dtype=float)[good()["groups"]] ** 2}, r"^y is reproduced exactly within every group"),
    ],
)
def test_arrays_that_cannot_be_fitted(changes, message):
    with pytest.raises(LMMError, match=message):
        model(**changes)


def test_empty_arrays():
    with pytest.raises(LMMError, match=r"^y is empty: there are no observations"):
        flc.LinearMixedModel([], None, None, [])


@pytest.mark.parametrize("value", [0.0, -1.0, -0.0])
def test_weights_that_are_not_positive(value):
    with pytest.raises(LMMError, match=rf"^weights must be positive \(first other: {value} at row 8\); remove"):
        model(weights=changed(np.ones(N), 8, value))


@pytest.mark.parametrize(
    ("extra", "column", "structure"),
    [
        (lambda Z: [Z[:, 1]], 2, "full"),
        (lambda Z: [Z[:, 1]], 2, "diagonal"),
        (lambda Z: [-5.0 * Z[:, 0]], 2, "diagonal"),
        (lambda Z: [3.0 * Z[:, 0] - 2.0 * Z[:, 1]], 2, "full"),
        (lambda Z: [np.zeros(N)], 2, "full"),
        (lambda Z: [np.zeros(N)], 2, "diagonal"),
        (lambda Z: [Z[:, 1] + 1e-9 * np.cos(np.arange(N))], 2, "full"),
        (lambda Z: [Z[:, 1] ** 2, 7.0 * Z[:, 1] ** 2 + 1.0], 3, "full"),
    ],
    ids=["copy", "copy, diagonal", "multiple, diagonal", "combination", "zero", "zero, diagonal", "rounding", "later"],
)
def test_collinear_random_effects(extra, column, structure):
    Z = good()["Z"]
    reason = "a linear combination" if structure == "full" else "proportional"
    with pytest.raises(LMMError, match=rf"^Z: column {column} is zero or {reason}.*remove it"):
        model(Z=np.column_stack([Z, *extra(Z)]), structure=structure)


def test_near_copies_are_told_apart_where_the_numbers_do():
    # 1 + 1e-9 k differs from 1 by its slope alone, which is known to seven digits: a calendar in fine units
    Z = np.column_stack([np.ones(N), 1.0 + 1e-9 * np.arange(N)])
    centred = np.column_stack([np.ones(N), (Z[:, 1] - 1.0) * 1e9])
    fine, plain = model(Z=Z).fit(), model(Z=centred).fit()
    assert fine.criterion == pytest.approx(plain.criterion, abs=1e-5)


def test_too_small_groups_are_refused_whatever_a_sample_of_the_rows_says():
    # one row among 3,000, not in the sample, tells that the column of ones is none
    X = np.column_stack([np.ones(3000), np.random.default_rng(0).standard_normal(3000)])
    y = np.random.default_rng(1).standard_normal(3000)
    Z = np.column_stack([np.ones(3000), X[:, 1]])
    for ones in (1.0, 2.0):
        X[1, 0] = ones
        with pytest.raises(LMMError, match=r"every level of 'group' has one observation"):
            flc.LinearMixedModel(y, X, Z, np.arange(3000))


# ------------------------------------------------------------------------------------------------------------
# formulas and tables


FORMULA = "y ~ x + (z | g)"


def pandas_table(**changes):
    return pd.DataFrame(table() | changes)


@pytest.mark.parametrize("library", ["pandas", "polars", "dict"])
@pytest.mark.parametrize(
    ("formula", "changes", "message"),
    [
        (FORMULA, {"y": changed(table()["y"], 5, np.inf)}, r"Column 'y' of `data` is infinite at row 5 .*correct"),
        (FORMULA, {"x": changed(table()["x"], 5, -np.inf)}, r"Column 'x' of `data` is infinite at row 5"),
        (FORMULA, {"z": changed(table()["z"], 5, np.inf)}, r"Column 'z' of `data` is infinite at row 5"),
        (FORMULA, {"w": changed(table()["w"], 5, np.inf)}, r"Column 'w' of `data` is infinite at row 5"),
        (FORMULA, {"o": changed(table()["o"], 5, np.inf)}, r"Column 'o' of `data` is infinite at row 5"),
        (FORMULA, {"w": changed(table()["w"], 5, 0.0)}, r"`weights` must be positive, .*row 5 .*Drop"),
        (FORMULA, {"g": np.full(N, "a")}, r"grouping factor 'g' has one level.*use"),
        (
            FORMULA,
            {"g": np.arange(N)},
            r"every level of 'g' has one observation: the variance of 'Intercept' in .*leave",
        ),
        ("y ~ x + (1 | g)", {"g": np.arange(N)}, r"every level of 'g' has one observation.* use ordinary regression"),
        (FORMULA, {"y": np.full(N, 2.5)}, r"is constant"),
        (FORMULA, {"y": np.array(["a", "b"] * 30)}, r"The response 'y' is not numeric .*convert the column"),
        ("response ~ x + (z | g)", {}, r"`data` has no column 'response', which the response uses.*columns are"),
        ("y ~ xx + (z | g)", {}, r"`data` has no column 'xx', which the fixed part uses.*Did you mean 'x'"),
        ("y ~ x + (zz | g)", {}, r"`data` has no column 'zz', which the term \(zz \| g\) uses"),
        ("y ~ x + (z | h)", {}, r"`data` has no column 'h', which the term \(z \| h\) uses"),
        ("y ~ x + (z + I(2 * z) | g)", {}, r"the column 'I\(2 \* z\)' of \(.*\| g\) is zero or a combination"),
        ("y ~ x", {}, r"has no random-effects term; add one such as \(1 \| g\)"),
    ],
)
def test_tables_that_cannot_be_fitted(library, formula, changes, message):
    make = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "dict": dict}[library]
    with pytest.raises(LMMError, match=message):
        flc.lmm(formula, make(table() | changes), weights="w" if "w" in changes else None, offset="o")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "v"}, r"`data` has no column 'v', which `weights` uses"),
        ({"offset": "v"}, r"`data` has no column 'v', which `offset` uses"),
        ({"weights": np.ones(3)}, r"`weights` has 3 values, but `data` has 60 rows; give one per row"),
        ({"missing": "omit"}, r"`missing` must be 'drop' or 'raise', not 'omit'"),
    ],
)
def test_arguments_of_a_formula(arguments, message):
    with pytest.raises(LMMError, match=message):
        flc.lmm(FORMULA, table(), **arguments)


def test_a_table_without_rows():
    with pytest.raises(LMMError, match=r"has no rows; give it at least one"):
        flc.lmm(FORMULA, pandas_table().head(0))


@pytest.mark.parametrize("column", ["y", "x", "z", "g", "w", "o"])
def test_missing_values_are_dropped_and_counted_or_refused(column):
    data = table()
    if column == "g":
        data["g"] = data["g"].astype(object)
        data["g"][[3, 41]] = None
    else:
        data[column] = changed(data[column], [3, 41], np.nan)
    frame = pd.DataFrame(data)
    with pytest.raises(LMMError, match=rf"Column '{column}' of `data` at rows 3, 41 .*Fill them in or drop"):
        flc.lmm(FORMULA, frame, weights="w", offset="o", missing="raise")
    fitted = flc.lmm(FORMULA, frame, weights="w", offset="o")
    assert fitted.n_dropped == 2
    by_hand = flc.lmm(FORMULA, frame.drop(index=[3, 41]), weights="w", offset="o")
    assert by_hand.n_dropped == 0
    theta = [1.0, 0.2, 0.5]
    assert fitted.evaluate(theta).value == pytest.approx(by_hand.evaluate(theta).value, rel=1e-13)


# ------------------------------------------------------------------------------------------------------------
# evaluation and fit


@pytest.mark.parametrize("theta", [[1.0], [1.0, 0.0, 1.0, 0.0], []])
def test_theta_of_the_wrong_length(theta):
    m = model()
    with pytest.raises(LMMError, match=rf"^theta has {len(theta)} elements, the model has 3"):
        m.evaluate(theta)
    with pytest.raises(LMMError, match=rf"^start has {len(theta)} elements, the model has 3"):
        m.fit(start=theta)
    with pytest.raises(ValueError, match=rf"theta has {len(theta)} elements, the model has 3"):
        m.problem.criterion().evaluate(np.array(theta, dtype=float))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_theta_that_is_not_finite(value):
    with pytest.raises(LMMError, match=r"^theta has values that are not finite"):
        model().evaluate([1.0, value, 1.0])
    with pytest.raises(LMMError, match=r"^start has values that are not finite"):
        model().fit(start=[1.0, value, 1.0])


@pytest.mark.parametrize("method", ["newtn", "lbfgs", ""])
def test_methods_that_do_not_exist(method):
    with pytest.raises(LMMError, match=rf"^method={method!r} is unknown: use 'newton' or a method of scipy"):
        model().fit(method=method)


def test_options_that_do_not_exist():
    with pytest.raises(LMMError, match=r"max_iter.*maxiter"):
        model().fit(options={"max_iter": 3})


# ------------------------------------------------------------------------------------------------------------
# results


@pytest.fixture(scope="module")
def result():
    return model().fit()


@pytest.fixture(scope="module")
def from_table():
    return flc.lmm(FORMULA, pandas_table(), weights="w", offset="o").fit()


def new_rows(**changes):
    d = good()
    return {"X": d["X"][:3], "Z": d["Z"][:3], "groups": d["groups"][:3]} | changes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda r: r.residuals("response"),
            r"^kind='response' is unknown: use 'conditional', .*'studentized' or 'within-groups'",
        ),
        (lambda r: r.conf_int(ddf="kr"), r"^ddf='kr' is unknown: use 'satterthwaite', .* or 'normal'"),
        (lambda r: r.conf_int(level=95), r"^level=95 must lie between 0 and 1; write 0\.95"),
        (lambda r: r.conf_int(level=0.0), r"^level=0.0 must lie between 0 and 1"),
        (lambda r: r.conf_int(level=float("nan")), r"^level=nan must lie between 0 and 1"),
        (lambda r: r.tidy("random"), r"^effects='random' is unknown: use 'fixed', 'ran_pars' or 'ran_vals'"),
        (lambda r: r.tidy(ddf="kr"), r"^ddf='kr' is unknown"),
        (lambda r: r.summary(level=2.0), r"^level=2.0 must lie between 0 and 1"),
        (lambda r: r.summary(ddf="kr"), r"^ddf='kr' is unknown"),
        (lambda r: r.simulate(0), r"^n=0 must be at least 1"),
        (lambda r: r.marginal_covariance(99), r"^subject=99: group has no such level among the rows used"),
        (lambda r: r.predict(effects="cluster"), r"^effects='cluster' is unknown: use 'population', 'all'"),
        (lambda r: r.predict(new_levels="drop"), r"^new_levels='drop' is unknown: use 'error' or 'population'"),
        (lambda r: r.predict(interval="both"), r"^interval='both' is unknown: use 'confidence', 'prediction' or None"),
        (lambda r: r.predict(interval="confidence", level=95), r"^level=95 must lie between 0 and 1"),
        (
            lambda r: r.predict(good()["X"]),
            r"^data must be a mapping with the arrays X: the model was made from arrays",
        ),
        (lambda r: r.predict({"Z": good()["Z"]}), r"^data has no 'X'; give the arrays X"),
        (lambda r: r.predict({"X": good()["X"]}, effects="all"), r"^data has no 'Z'; give the arrays X, Z, groups"),
        (lambda r: r.predict(new_rows(X=np.ones((3, 3)))), r"^data\['X'\] must have 2 columns, not the shape \(3, 3\)"),
        (
            lambda r: r.predict(new_rows(Z=np.ones((2, 2))), effects="all"),
            r"^data\['Z'\] has 2 rows, data\['X'\] has 3",
        ),
        (
            lambda r: r.predict(new_rows(X=changed(np.ones((3, 2)), (1, 1), np.nan))),
            r"^data\['X'\] has values that are not finite \(first: row 1\); remove",
        ),
        (lambda r: r.predict(new_rows(X=np.full((3, 2), "a"))), r"^data\['X'\] must hold numbers"),
        (
            lambda r: r.predict(new_rows(groups=[0, 99, -1]), effects="all"),
            r'^data has levels of group that the model has not seen: -1, 99; use new_levels="population"',
        ),
        (
            lambda r: r.predict(new_rows(groups=np.arange(100, 103)), effects="all", observed={"X": np.ones((1, 2))}),
            r"^observed has no 'Z'; give the arrays X, Z, groups, y",
        ),
        (lambda r: r.predict(new_rows(), offset=np.ones(2)), r"^offset has 2 .*3"),
        (lambda r: r.predict(new_rows(), offset=changed(np.ones(3), 1, np.nan)), r"^offset .*not finite.*row 1"),
        (
            lambda r: r.predict(new_rows(), interval="prediction", weights=np.ones(2)),
            r"^weights has 2 .*3",
        ),
        (
            lambda r: r.predict(new_rows(), interval="prediction", weights=changed(np.ones(3), 2, -1.0)),
            r"^weights must be positive.*-1.0 at row 2",
        ),
    ],
)
def test_arguments_of_results(result, call, message):
    with pytest.raises(LMMError, match=message):
        call(result)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"g": ["g00", "new", "newer"]},
            {"effects": "all"},
            r"levels of g .*not seen: 'new', 'newer'; use new_levels",
        ),
        ({"g": ["g00", "g01", None]}, {"effects": "all"}, r"Column 'g' of `data` at row 2"),
        ({"x": [1.0, np.nan, 2.0]}, {}, r"Values are missing\. Column 'x' of `data` at row 1"),
        ({"x": [1.0, np.inf, 2.0]}, {}, r"Column 'x' of `data` is infinite at row 1"),
        ({"x": ["a", "b", "c"]}, {}, r"Column 'x' of `data` holds values of type .*convert it to numbers"),
        ({"x": None}, {}, r"`data` has no column 'x', which the fixed part uses"),
        ({"z": None}, {"effects": "all"}, r"`data` has no column 'z', which the term"),
        ({"g": None}, {"effects": "all"}, r"`data` has no column 'g', which the term"),
        ({"o": None}, {}, r"`data` has no column 'o', which `offset` uses"),
    ],
)
def test_new_data_that_cannot_be_used(from_table, changes, options, message):
    columns = {k: list(v[:3]) for k, v in table().items()} | changes
    frame = pd.DataFrame({k: v for k, v in columns.items() if v is not None})
    with pytest.raises(LMMError, match=message):
        from_table.predict(frame, **options)


def test_the_error_is_a_value_error():
    assert issubclass(LMMError, ValueError)


# ------------------------------------------------------------------------------------------------------------
# no errors


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("place", ["last", "middle"])
def test_rank_deficiency_is_reported(place, reml):
    d = good()
    extra = 2.0 * d["X"][:, 1] - 3.0
    third = np.random.default_rng(3).standard_normal(N)
    wide = [d["X"], extra[:, None], third[:, None]] if place == "middle" else [d["X"], third[:, None], extra[:, None]]
    names = ["one", "x", "extra", "third"] if place == "middle" else ["one", "x", "third", "extra"]
    slim_model = model(X=np.column_stack([d["X"], third]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide_model = model(X=np.column_stack(wide), exog_names=names)
        wide_fit = wide_model.fit(reml=reml)
    slim = slim_model.fit(reml=reml)
    kept = [i for i, name in enumerate(names) if name != "extra"]
    at = names.index("extra")
    assert wide_fit.dropped_columns == ("extra",)
    assert wide_model.df_resid == slim_model.df_resid == N - 3
    assert np.isnan(wide_fit.params[at]) and np.isnan(wide_fit.bse[at]) and np.isnan(wide_fit.tvalues[at])
    assert np.isnan(wide_fit.pvalues[at]) and np.isnan(wide_fit.conf_int()[at]).all()
    assert np.isnan(wide_fit.cov_params()[at]).all() and np.isnan(wide_fit.cov_params()[:, at]).all()
    # one criterion at every theta, not only at the optimum
    theta = [0.7, -0.2, 0.4]
    for order in (0, 2):
        a, b = (m.evaluate(theta, reml=reml, order=order) for m in (wide_model, slim_model))
        assert a.value == pytest.approx(b.value, rel=1e-11)
    np.testing.assert_allclose(a.hessian, b.hessian, rtol=0.0, atol=1e-8 * np.max(np.abs(b.hessian)))
    assert a.value == pytest.approx(
        oracle.criterion_theta(theta, d["y"], np.column_stack([d["X"], third]), d["Z"], d["groups"], reml), rel=1e-11
    )
    assert wide_fit.criterion == pytest.approx(slim.criterion, rel=1e-11)
    np.testing.assert_allclose(wide_fit.params[kept], slim.params, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(wide_fit.bse[kept], slim.bse, rtol=1e-6)
    np.testing.assert_allclose(wide_fit.random_effects, slim.random_effects, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(wide_fit.fittedvalues, slim.fittedvalues, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(wide_fit.predict(), slim.predict(), rtol=1e-6, atol=1e-7)
    assert wide_fit.aic == pytest.approx(slim.aic, rel=1e-11)
    assert wide_fit.n_parameters == slim.n_parameters
    np.testing.assert_array_equal(wide_fit.simulate(2, seed=1).shape, (2, N))
    assert np.isfinite(wide_fit.r2()["marginal"])
    assert "extra" in str(wide_fit.summary())


@pytest.mark.parametrize("reml", [True, False])
def test_zero_columns_of_x_are_dropped(reml):
    d = good()
    wide = model(X=np.column_stack([np.zeros(N), d["X"], np.zeros(N)])).fit(reml=reml)
    slim = model().fit(reml=reml)
    assert wide.dropped_columns == ("x0", "x3")
    assert wide.criterion == pytest.approx(slim.criterion, rel=1e-11)
    np.testing.assert_allclose(wide.params[1:3], slim.params, rtol=1e-6)


@pytest.mark.parametrize("method", ["newton", "L-BFGS-B", "BFGS", "Nelder-Mead", "SLSQP", "trust-exact"])
@pytest.mark.parametrize("most", [1, 2])
def test_a_fit_stopped_early_says_so(method, most):
    ref = oracle.reference("sleepstudy_slope")
    m = flc.LinearMixedModel(*ref.arrays)
    far = [30.0, 10.0, 30.0]
    result = m.fit(method=method, start=far, options={"maxiter": most})
    assert result.converged is False
    assert result.message.startswith("not certified")
    # why: it was stopped. Where the gradient is large the place is no saddle point, whatever the curvature
    assert re.search("iteration|maxiter|stopped", result.message)
    assert "saddle" not in result.message
    best = ref.blocks[True].criterion
    assert result.criterion > best + 1e-6
    # the record tells the truth about the point at which it stopped
    assert result.criterion == pytest.approx(oracle.criterion_theta(result.theta, *ref.arrays, True), rel=1e-11)
    assert result.gradient_norm > 1e-4


def test_a_fit_stopped_early_from_the_default_start_says_so():
    for options in ({"maxiter": 0}, {"maxiter": 1}):
        result = model().fit(options=options)
        assert result.converged is False
        assert result.message.startswith("not certified")


METHODS = [
    "newton", "Nelder-Mead", "Powell", "CG", "BFGS", "Newton-CG", "L-BFGS-B", "TNC", "COBYLA", "COBYQA", "SLSQP",
    "trust-constr", "dogleg", "trust-ncg", "trust-exact", "trust-krylov", "l-bfgs-b", "nelder-mead",
]  # fmt: skip


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_reaches_the_optimum_or_owns_up(method, reml):
    ref = oracle.reference("sleepstudy_slope")
    result = flc.LinearMixedModel(*ref.arrays).fit(reml=reml, method=method)
    gradient = oracle.gradient_theta(result.theta, *ref.arrays, reml)
    if result.converged:
        # certified: within 5e-9 of the minimum, the reference's own error is smaller
        assert result.criterion == pytest.approx(ref.blocks[reml].criterion, abs=1e-8)
        assert np.max(np.abs(gradient)) < 1e-2
    else:
        assert result.message.startswith("not certified")
        assert np.max(np.abs(gradient)) > 1e-6
    assert result.criterion >= ref.blocks[reml].criterion - 1e-8
    # these have no excuse on a smooth function of three parameters
    if method.lower() not in ("powell", "cobyla", "cobyqa", "tnc", "cg"):
        assert result.converged


def test_a_callable_is_a_method():
    from scipy.optimize import OptimizeResult, minimize

    seen = []

    def own(fun, x0, args=(), jac=None, hess=None, **options):
        seen.append(sorted(options))
        found = minimize(fun, x0, jac=jac, hess=hess, method="trust-exact")
        return OptimizeResult(x=found.x, fun=found.fun, success=True)

    ref = oracle.reference("sleepstudy_slope")
    result = flc.LinearMixedModel(*ref.arrays).fit(method=own)
    assert seen
    assert result.criterion == pytest.approx(ref.blocks[True].criterion, rel=1e-9)
    assert result.optimum.method == "own"


def test_a_callable_that_stays_where_it_is_is_found_out():
    from scipy.optimize import OptimizeResult

    def lazy(fun, x0, args=(), **options):
        return OptimizeResult(x=x0, fun=fun(x0), success=True)

    ref = oracle.reference("sleepstudy_slope")
    result = flc.LinearMixedModel(*ref.arrays).fit(method=lazy, start=[3.0, 1.0, 2.0])
    assert result.converged is False
    np.testing.assert_allclose(result.theta, [3.0, 1.0, 2.0], rtol=1e-10)
    # at the saddle of Lambda = 0 the gradient says yes and the curvature no
    result = flc.LinearMixedModel(*ref.arrays).fit(method=lazy, start=[0.0, 0.0, 0.0])
    assert result.converged is False
    assert "can still be lowered" in result.message
