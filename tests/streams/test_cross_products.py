"""Sums of fragments: they add up in any order, once each, by one plan, and are kept in files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc
from streamed import FORMULA, close, cut, same_bits, simulated


def parts_of(data, plan, size=800):
    return [plan.reduce(part, key=f"part {i:02}") for i, part in enumerate(cut(data, size))]


@pytest.fixture(scope="module")
def data():
    return simulated(6000, shuffled=True)


@pytest.fixture(scope="module")
def plan(data):
    return flc.plan(FORMULA, data)


def test_sums_are_those_of_dense_products(data, plan):
    total = flc.merge(parts_of(data, plan))
    shift, scale = plan.columns.x_scale
    X = (np.column_stack([np.ones(len(data)), data["x"], data["z"]]) - shift) * scale
    r = data["y"].to_numpy() - X @ plan.columns.beta0
    xr = np.column_stack([X, r])
    np.testing.assert_allclose(total.packed, (xr.T @ xr)[np.tril_indices(4)], rtol=1e-11, atol=1e-9)
    assert total.nobs == len(data) and total.n_groups == data["g"].nunique()
    Z = (np.column_stack([np.ones(len(data)), data["x"]]) - plan.columns.z_scale[0]) * plan.columns.z_scale[1]
    for i in (0, 17, total.n_groups - 1):
        own = (data["g"] == total.levels[0][i]).to_numpy()
        expected = np.r_[(Z[own].T @ Z[own])[np.tril_indices(2)], (Z[own].T @ xr[own]).ravel(), own.sum()]
        np.testing.assert_allclose(total.raw[i], expected, rtol=1e-11, atol=1e-10)


def test_the_order_of_parts_does_not_matter(data, plan):
    parts = parts_of(data, plan)
    one = flc.merge(parts)
    for seed in range(3):
        other = flc.merge([parts[i] for i in np.random.default_rng(seed).permutation(len(parts))])
        np.testing.assert_array_equal(one.raw, other.raw)
        np.testing.assert_array_equal(one.packed, other.packed)
        assert one.keys == other.keys
    result = flc.lmm(plan, one).fit()
    assert result.converged
    close(result, flc.lmm(FORMULA, data).fit())


def test_a_fragment_does_not_count_twice(data, plan):
    parts = parts_of(data, plan)
    with pytest.raises(flc.LMMError, match=r"parts\[0\] and parts\[8\] both hold the fragment 'part 00'"):
        flc.merge([*parts, parts[0]])
    with pytest.raises(flc.LMMError, match="both hold"):
        flc.merge(parts[:4]).merge(parts[3])
    with pytest.raises(flc.LMMError, match="parts is empty"):
        flc.merge([])


def test_sums_of_different_plans_are_refused(data, plan):
    other = flc.plan("y ~ z + (x | g)", data)
    shifted = flc.plan(FORMULA, data.iloc[::-1].reset_index(drop=True).assign(x=lambda d: d["x"] + 9.0))
    assert len({plan.fingerprint, other.fingerprint, shifted.fingerprint}) == 3
    one = plan.reduce(data.iloc[:100], key=0)
    for wrong in (other, shifted):
        with pytest.raises(flc.LMMError, match=r"parts\[1\] was made by another plan"):
            flc.merge([one, wrong.reduce(data.iloc[100:], key=1)])
        with pytest.raises(flc.LMMError, match="the sums were made by another plan"):
            flc.lmm(wrong, one)
    assert flc.plan(FORMULA, data).fingerprint == plan.fingerprint


def test_a_plan_and_a_scan(data, plan):
    same_bits(flc.lmm(plan, flc.scan(cut(data, 500))).fit(), flc.lmm(FORMULA, flc.scan(data)).fit())
    total = plan.reduce(data, key=0)
    for wrong in ((FORMULA, total), (plan, data), (total, plan)):
        with pytest.raises(flc.LMMError):
            flc.lmm(*wrong)


def test_plans_travel(data, plan):
    again = pickle.loads(pickle.dumps(plan))
    assert again.fingerprint == plan.fingerprint
    one, other = plan.reduce(data, key=1), again.reduce(data, key=1)
    np.testing.assert_array_equal(one.raw, other.raw)
    categorical = flc.plan("y ~ arm * center(x) + (1 | g)", data)
    again = pickle.loads(pickle.dumps(categorical))
    np.testing.assert_array_equal(categorical.reduce(data, key=1).raw, again.reduce(data, key=1).raw)


@pytest.mark.parametrize("text", [False, True])
def test_files_keep_every_bit(tmp_path, data, text):
    data = data.assign(g=[f"é {g}" for g in data["g"]]) if text else data
    plan = flc.plan(FORMULA, data)
    parts = parts_of(data, plan)
    before = flc.merge(parts[:-1])
    before.save(tmp_path / "before.sums")
    total = flc.CrossProducts.load(tmp_path / "before.sums").merge(parts[-1])
    same_bits(flc.lmm(plan, total).fit(), flc.lmm(plan, before.merge(parts[-1])).fit())
    assert total.nobs == len(data)
    plan = flc.plan("y ~ arm + x + (1 | g)", data)
    plan.reduce(data, key=1).save(tmp_path / "arms.sums")
    means = flc.lmm(plan, flc.CrossProducts.load(tmp_path / "arms.sums")).fit().emmeans("arm")
    np.testing.assert_allclose(means.estimate, flc.lmm("y ~ arm + x + (1 | g)", data).fit().emmeans("arm").estimate)
    with pytest.raises(flc.LMMError, match="cannot be read"):
        flc.CrossProducts.load(tmp_path / "nothing.sums")


def test_fragments_without_rows(data, plan):
    parts = parts_of(data, plan)
    empty = plan.reduce(data.iloc[:0], key="nothing")
    gaps = plan.reduce(data.iloc[:50].assign(y=np.nan), key="gaps")
    total = flc.merge([*parts, empty, gaps])
    assert total.nobs == len(data) and total.n_dropped == 50 and total.missing == {"y": 50}
    same_bits(flc.lmm(plan, total).fit(), flc.lmm(plan, flc.merge(parts)).fit())


def test_labels_of_two_types_are_refused(data, plan):
    text = plan.reduce(data.iloc[:100].assign(g=lambda d: d["g"].astype(str)), key=0)
    with pytest.raises(flc.LMMError, match="of different types, numbers and text"):
        flc.merge([text, plan.reduce(data.iloc[100:], key=1)])
    with pytest.raises(flc.LMMError, match="are numbers here and were text before"):
        plan.reduce([data.iloc[:100].assign(g=lambda d: d["g"].astype(str)), data.iloc[100:]], key=1)


def test_a_level_that_the_plan_does_not_know(data):
    plan = flc.plan("y ~ arm + (1 | g)", data[data["arm"] != "c"])
    with pytest.raises(flc.LMMError, match="'c' that the fit has not seen"):
        plan.reduce(data, key=0)


def test_sums_that_do_not_decide_ask_for_the_rows(data):
    data = data.assign(w=2.0 * data["x"] - data["z"])
    formula = "y ~ x + z + w + (1 | g)"
    plan = flc.plan(formula, data)
    total = flc.merge(parts_of(data, plan))
    with pytest.raises(flc.LMMError, match=r"lmm\(plan, total, source=\.\.\.\)"):
        flc.lmm(plan, total)
    close(flc.lmm(plan, total, source=data).fit(), flc.lmm(formula, data).fit())


def test_sums_of_y_between_groups_ask_for_the_rows(data):
    data = data.assign(y=1e4 * data["g"] + data["y"] * 1e-5).iloc[::-1].reset_index(drop=True)
    plan = flc.plan("y ~ x + (1 | g)", data)
    total = flc.merge(parts_of(data, plan))
    with pytest.raises(flc.LMMError, match=r"lmm\(plan, total, source=\.\.\.\)"):
        flc.lmm(plan, total)
    one, other = flc.lmm(plan, total, source=data).fit(), flc.lmm("y ~ x + (1 | g)", data).fit()
    assert one.sigma == pytest.approx(other.sigma, rel=1e-6)
    # y has ten digits before the variation within groups
    np.testing.assert_allclose((one.beta - other.beta) / np.sqrt(np.diag(other.cov)), 0.0, atol=1e-4)
