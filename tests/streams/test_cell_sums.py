"""Several grouping factors without rows: nested ones with the bits of memory, crossed ones by their cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.engines.nested.problem import NestedProblem
from fastlmm_core.kernels.reading import SlotTable
from streamed import close, cut, same_bits


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Chunks of one block, so that there are several of them."""
    monkeypatch.setattr("fastlmm_core.streams.reduce.TARGET", 1 << 12)


def schools(n=9000, m=40, seed=1):
    """Classes within schools, numbered anew in each; rows sorted by class."""
    rng = np.random.default_rng(seed)
    unit = np.sort(rng.integers(0, 6 * m, n))
    school, x, z = unit // 6, rng.normal(30.0, 2.0, n), rng.normal(size=n)
    b, c = rng.normal(size=(m, 2)) * [2.0, 0.3], rng.normal(size=(6 * m, 2)) * [1.0, 0.2]
    y = 1.0 + 0.5 * x + z + b[school, 0] + c[unit, 0] + (b[school, 1] + c[unit, 1]) * (x - 30.0) + rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "z": z, "school": school, "room": unit % 6, "unit": unit, "w": 1.0 + z**2})


def ratings(n=5000, a=60, b=35, seed=1):
    rng = np.random.default_rng(seed)
    user, film = rng.integers(0, a, n), (b * rng.beta(1.0, 2.0, n)).astype(int)
    x, z = rng.normal(30.0, 2.0, n), rng.normal(size=n)
    u, f = rng.normal(size=(a, 2)) * [2.0, 0.3], rng.normal(size=b)
    y = 1.0 + 0.5 * x + z + u[user, 0] + u[user, 1] * (x - 30.0) + f[film] + rng.normal(size=n)
    data = pd.DataFrame({"y": y, "x": x, "z": z, "user": user, "film": [f"film {i}" for i in film], "w": 1.0 + z**2})
    return data.assign(genre=film % 4, year=user % 3)


NESTED = [
    "y ~ x + z + (1 | school/room)", "y ~ x + (x | school/room)", "y ~ x + z + (x | school) + (1 | unit)",
    "y ~ x + z + (x || school) + (1 | school:room)", "y ~ x + z + (1 | school) + (0 + x | school:room)",
    "y ~ z + (1 | unit) + (z | school)",
]  # fmt: skip
CROSSED = [
    "y ~ x + z + (1 | user) + (1 | film)", "y ~ x + z + (x | user) + (1 | film)", "y ~ x + (x | user) + (x | film)",
    "y ~ x + (x || user) + (0 + z | film)", "y ~ x + (1 | user) + (1 | film) + (1 | genre)",
    "y ~ x + (1 | year/user) + (1 | film)", "y ~ z + (1 | film) + cs(x | user)",
]  # fmt: skip


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("size", [999, 2048, 10_000])
@pytest.mark.parametrize("formula", NESTED)
def test_nested_factors_have_the_bits_of_memory(formula, size, weights):
    data = schools()
    one = flc.lmm(formula, data, weights=weights).fit()
    other = flc.lmm(formula, flc.scan(cut(data, size)), weights=weights).fit()
    assert isinstance(other.model.problem, NestedProblem)
    same_bits(one, other)
    assert other.model.design.passes == 1
    assert other.model.term_names == one.model.term_names and other.model.exog_re_names == one.model.exog_re_names


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", CROSSED)
def test_crossed_factors(formula, weights):
    data = ratings()
    one = flc.lmm(formula, data, weights=weights).fit()
    other = flc.lmm(formula, flc.scan(cut(data, 900)), weights=weights).fit()
    close(one, other)
    assert other.converged and other.n_groups == one.n_groups
    for mine, theirs in zip(one.blups, other.blups, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("data", "formulas"), [(schools(), NESTED), (ratings(), CROSSED)])
def test_parts_in_any_order(tmp_path, data, formulas):
    for formula in formulas:
        plan = flc.plan(formula, data)
        # the levels of a fragment are not those of all
        parts = [plan.reduce(part, key=i) for i, part in enumerate(cut(data.sort_values("z"), 1100))]
        total = flc.merge(parts[::-1])
        again = flc.merge([*parts[3:], flc.merge(parts[:3][::-1])])
        np.testing.assert_array_equal(total.cells, again.cells)
        np.testing.assert_allclose(total.raw, again.raw, rtol=1e-12, atol=1e-9)
        total.save(tmp_path / "total.sums")
        loaded = flc.CrossProducts.load(tmp_path / "total.sums")
        one, other = flc.lmm(plan, total).fit(), flc.lmm(plan, loaded).fit()
        same_bits(one, other)
        close(one, flc.lmm(formula, data).fit(), 1e-11)


def test_lines_are_products_of_the_rows_of_a_cell():
    data = ratings(600)
    plan = flc.plan("y ~ x + z + (x | user) + (1 | film)", data)
    total = plan.reduce(data, key=0)
    shift, scale = plan.columns.x_scale
    X = (np.column_stack([np.ones(len(data)), data["x"], data["z"]]) - shift) * scale
    xr = np.column_stack([X, data["y"] - X @ plan.columns.beta0])
    Z = X[:, :2]
    assert total.n_groups == len(data.drop_duplicates(["user", "film"]))
    for line in (0, 5, total.n_groups - 1):
        user, film = (labels[i] for labels, i in zip(total.levels, total.cells[line], strict=True))
        own = ((data["user"] == user) & (data["film"] == film)).to_numpy()
        expected = np.r_[(Z[own].T @ Z[own])[np.tril_indices(2)], (Z[own].T @ xr[own]).ravel(), own.sum()]
        np.testing.assert_allclose(total.raw[line], expected, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("make", [schools, ratings])
def test_what_is_told_without_rows(make):
    data = make()
    formula = "y ~ x + z + (1 | school/room)" if make is schools else "y ~ x + z + (1 | user) + (1 | film)"
    one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 900))).fit()
    for ddf in ("satterthwaite", "kenward-roger"):
        np.testing.assert_allclose(other.conf_int(ddf=ddf), one.conf_int(ddf=ddf), rtol=1e-7)
    assert other.icc() == pytest.approx(one.icc(), rel=1e-9)
    assert other.r2() == pytest.approx(one.r2(), rel=1e-9)
    new = data.iloc[::500]
    np.testing.assert_allclose(np.asarray(other.predict(new)), np.asarray(one.predict(new)), rtol=1e-9)
    assert str(other.summary()) == str(one.summary())
    a, b = one.profile().to_frame(), other.profile().to_frame()
    for name in a.select_dtypes(float):
        np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-7)
    found = pd.concat([table.to_pandas() for table in other.augment(cut(data, 800))])
    np.testing.assert_allclose(found["fitted"], one.fittedvalues, rtol=1e-9)


@pytest.mark.parametrize("make", [schools, ratings])
def test_columns_that_take_another_pass(make):
    data = make(3000).assign(v=lambda d: d["x"] * 1e6 + d["z"], u=lambda d: 2.0 * d["x"] - d["z"])
    data["far"], data["s"] = data["x"] + 1e4, data["x"] * 1e3 + data["z"]
    groups = "(1 | school/room)" if make is schools else "(1 | user) + (1 | film)"
    first = "school" if make is schools else "user"
    for formula, dropped in (
        (f"y ~ x + z + u + {groups}", ("u",)), (f"y ~ x + v + z + {groups}", ("z",)),
        (f"y ~ x + (0 + far | {first}) + {groups}", ()), (f"y ~ x + (0 + x + s | {first}) + {groups}", ()),
    ):  # fmt: skip
        one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 700))).fit()
        assert one.dropped_columns == other.dropped_columns == dropped
        assert other.criterion == pytest.approx(one.criterion, rel=1e-9)
        assert other.converged


def test_a_column_that_is_constant_at_first():
    data = schools(6000).assign(late=lambda d: np.where(np.arange(len(d)) < 3000, 1.0, d["z"]))
    formula = "y ~ 0 + late + (1 | school/room)"
    one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 700))).fit()
    close(one, other)
    assert other.model.design.passes == 2


def test_y_between_cells_only():
    data = schools(4000).assign(y=lambda d: 1e4 * (d["unit"] % 17) + 3.0 * d["y"])
    one = flc.lmm("y ~ x + (1 | school/room)", data).fit()
    other = flc.lmm("y ~ x + (1 | school/room)", flc.scan(cut(data, 700))).fit()
    same_bits(one, other)
    assert other.model.design.passes == 2


@pytest.mark.parametrize("size", [60, 400])
def test_few_rows(size):
    # in memory these are taken with care, column by column
    for data, formula in ((schools(size, 5), NESTED[0]), (ratings(size, 9, 8), CROSSED[0])):
        one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 17))).fit()
        close(one, other, 1e-10)


def test_cells_of_one_row():
    # every user sees every film once: as many cells as rows
    rng = np.random.default_rng(3)
    user, film = np.divmod(np.arange(1200), 40)
    y = rng.normal(size=30)[user] + rng.normal(size=40)[film] + rng.normal(size=1200)
    data = pd.DataFrame({"y": y, "user": user, "film": film})
    one = flc.lmm("y ~ 1 + (1 | user) + (1 | film)", data).fit()
    close(one, flc.lmm("y ~ 1 + (1 | user) + (1 | film)", flc.scan(cut(data, 100))).fit(), 1e-11)


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("y ~ x + z + (1 | school) + (1 | row)", "every level of 'row' has one observation"),
        ("y ~ x + C(school) + (1 | school/room)", "explained by the fixed effects at every level of 'school'"),
        ("y ~ x + C(user) + (1 | user) + (1 | film)", "explained by the fixed effects at every level of 'user'"),
        ("y ~ x + (1 | user) + (1 | film) + (1 | cell)", "every level of 'cell' has one observation"),
        ("y ~ x + (1 | user) + (1 | one)", "'one' has one level"),
    ],
)
def test_what_is_refused_in_memory_is_refused(formula, words):
    data = schools(3000) if "school" in formula else ratings(3000).drop_duplicates(["user", "film"])
    data = data.reset_index(drop=True).assign(row=lambda d: np.arange(len(d)), cell=lambda d: np.arange(len(d)), one=1)
    for source in (data, flc.scan(cut(data, 700))):
        with pytest.raises(flc.LMMError, match=words):
            flc.lmm(formula, source).fit()


def test_an_effect_of_each_cell():
    """Effects of the cells and residuals are told apart by what varies within cells, which no sum tells."""
    rng = np.random.default_rng(3)
    a, b = np.repeat(np.arange(12), 16), np.tile(np.repeat(np.arange(8), 2), 12)
    y = rng.normal(size=12)[a] + rng.normal(size=8)[b] + rng.normal(size=96)[8 * a + b] + rng.normal(size=192)
    data = pd.DataFrame({"y": y, "a": a, "b": b, "cell": 8 * a + b})
    formula = "y ~ 1 + (1 | a) + (1 | b) + (1 | cell)"
    one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 50))).fit()
    close(one, other)
    assert other.converged and not other.singular


def test_slots_are_given_out_as_pairs_come():
    rng = np.random.default_rng(1)
    table, known = SlotTable(), {}
    for _ in range(20):
        first, second = rng.integers(-(2**62), 2**62, 300)[rng.integers(0, 300, 1000)], rng.integers(0, 5, 1000)
        expected = [known.setdefault(pair, len(known)) for pair in zip(first.tolist(), second.tolist(), strict=True)]
        assert table.slots(first, second).tolist() == expected
    assert table.n == len(known)
    assert [tuple(pair) for pair in table.pairs().tolist()] == list(known)
    alone = SlotTable()
    assert alone.slots(np.array([7, 9, 7])).tolist() == [0, 1, 0] and alone.slots(np.empty(0, np.int64)).tolist() == []
