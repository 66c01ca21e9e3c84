"""New rows coded by the library's own products, against formulaic's materialisation of the same ModelSpec."""

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.formula import matrices
from fastlmm_core.formula.coded_rows import coded_rows
from fastlmm_core.formula.syntax import parse
from fastlmm_core.tables.columns import Table

ROUNDING = 4.0 * np.finfo(float).eps
"""Products are taken in another order, and pandas computes expressions by other loops than numpy."""

CODED = (
    "arm", "arm*x", "arm*x + h", "h*arm*x", "0 + arm", "0 + arm:h", "arm:x", "h:x", "0 + h:x + arm", "x:arm + x:h",
    "C(arm, Treatment('b'))*x", "C(arm, Sum)*h", "C(h, Helmert)*arm", "C(h, Poly)*x", "C(h, Diff)", "C(k)*x",
    "C(k) + k", "C(h, levels=['y', 'x', 'w', 'v', 'u'])", "np.log(z) * arm", "log(z) + exp(-x)", "I(x**2)*arm",
    "I(np.sqrt(z)/2) + arm", "`my x`*arm", "I(x > 0)*arm",
    "poly(x, 2)*arm", "bs(x, df=4)*arm", "cs(x, df=4)", "center(x)*h", "scale(z):arm", "(arm + h + x)**2",
    "I(k/2)*arm", "I(x + z) * arm", "arm/x", "arm + x + arm:x:h", "z*x*arm", "poly(x, 2, raw=True)", "k*arm",
)  # fmt: skip

LEFT = ("flag*arm", "C(flag)*x", "I(`my x`**2)*arm", "np.where(x > 0, x, z)*flag*arm")


def data(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "g": np.repeat(np.arange(n // 5), 5), "x": rng.standard_normal(n), "z": rng.uniform(0.5, 3.0, n),
        "my x": rng.standard_normal(n), "k": rng.integers(0, 4, n), "flag": rng.random(n) > 0.5,
        "arm": rng.choice(["a", "b", "c"], n),
        "h": pd.Categorical(rng.choice(list("uvwxy"), n), categories=list("yxuvw")),
        "y": rng.standard_normal(n),
    })  # fmt: skip


def parts(result: flc.LMMResult):
    spec = result.model.spec
    parsed = parse(spec.formula)
    return zip([parsed.fixed, *(bar.left for bar in parsed.bars)], spec.states[1:], spec.codings, strict=True)


@pytest.mark.parametrize("fixed", CODED)
def test_new_rows_are_those_of_formulaic(fixed):
    result = flc.lmm(f"y ~ {fixed} + (1 | g)", data()).fit()
    side, state, coding = next(parts(result))
    assert coding is not None
    for rows in (data(10, 1), data(5, 2).iloc[:1]):
        rows = rows.assign(x=rows.x / 10.0)  # within the knots of splines
        found = coded_rows(coding, side, Table(rows), state)
        wanted = matrices._formulaic_matrix(side, Table(rows), None, state).matrix
        assert found is not None
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, wanted, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("bar", ["0 + arm", "arm*x", "C(h, Sum)", "poly(x, 2)", "x*z"])
def test_the_left_side_of_a_bar(bar):
    result = flc.lmm(f"y ~ x + ({bar} | g)", data(600)).fit()
    for side, state, coding in parts(result):
        if state is not None:
            rows = data(600, 3)[10:13]
            wanted = matrices._formulaic_matrix(side, Table(rows), None, state).matrix
            np.testing.assert_allclose(
                coded_rows(coding, side, Table(rows), state), wanted, rtol=ROUNDING, atol=ROUNDING
            )


@pytest.mark.parametrize("fixed", LEFT)
def test_what_is_left_to_formulaic(fixed):
    result = flc.lmm(f"y ~ {fixed} + (1 | g)", data()).fit()
    side, state, coding = next(parts(result))
    assert coding is None or coded_rows(coding, side, Table(data(5, 1)), state) is None
    wanted = matrices._formulaic_matrix(side, Table(data(5, 1)), None, state).matrix @ result.params.to_numpy()
    np.testing.assert_allclose(result.predict(data(5, 1)), wanted, rtol=1e-13, atol=1e-13)


def test_a_table_of_another_library_and_of_other_types():
    result = flc.lmm("y ~ arm*x + C(k, Sum) + h + (1 | g)", data()).fit()
    rows = data(10, 4)
    wanted = result.predict(rows).to_numpy()
    as_lists = {name: rows[name].tolist() for name in ("arm", "x", "k", "h")}
    np.testing.assert_allclose(np.asarray(result.predict(as_lists)), wanted, rtol=1e-14)
    # integers that are floats, and text in place of categories
    loose = rows.assign(k=rows.k.astype(float), h=rows.h.astype(str))
    np.testing.assert_allclose(result.predict(loose), wanted, rtol=1e-14)


def test_what_is_wrong_is_told_as_before():
    result = flc.lmm("y ~ np.log(z)*arm + (1 | g)", data()).fit()
    with pytest.raises(flc.LMMError, match=r"has the level 'q' that the fit has not seen"):
        result.predict({"z": [1.0], "arm": ["q"]})
    with pytest.raises(flc.LMMError, match=r"no finite value at row 1 "):
        result.predict({"z": [1.0, 0.0], "arm": ["a", "b"]})
    with pytest.raises(flc.LMMError, match="no column 'arm'"):
        result.predict({"z": [1.0]})
    with pytest.raises(flc.LMMError, match="missing"):
        result.predict({"z": [np.nan], "arm": ["a"]})
    with pytest.raises(flc.LMMError):
        result.predict({"z": ["big"], "arm": ["a"]})


def test_a_fit_that_was_saved_codes_alike(tmp_path):
    result = flc.lmm("y ~ C(h, Sum)*center(x) + np.log(z):arm + (1 | g)", data()).fit()
    result.save(tmp_path / "fit.flc")
    rows = data(10, 5)
    for other in (flc.load(tmp_path / "fit.flc"), pickle.loads(pickle.dumps(result))):
        assert other.model.spec.codings[0] is not None
        np.testing.assert_allclose(other.predict(rows), result.predict(rows), rtol=1e-12)
