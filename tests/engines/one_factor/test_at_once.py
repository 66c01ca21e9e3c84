"""Problems that are conditioned in one call of the kernels are those of the steps, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError, kernels
from fastlmm_core.covariance.parameters import one_block
from fastlmm_core.design.grouping import Codes, group_codes
from fastlmm_core.engines.one_factor import conditioning
from fastlmm_core.engines.one_factor.reading import ArrayRows
from fastlmm_core.kernels.records.rows import Rows


def drawn(rng, trial):
    """Rows of some problem: sizes, units and origins of all kinds; weights, offsets, gaps in the codes now and then."""
    m = int(rng.integers(2, 90))
    n = int(rng.integers(2500, 9000)) if trial % 10 == 0 else int(rng.integers(m + 2, m * 8 + 10))
    p, q = int(rng.integers(0, 6)), int(rng.integers(1, 4))
    codes = rng.integers(0, m, n) * int(rng.integers(1, 3))
    X = rng.normal(size=(n, p)) * rng.choice([1.0, 100.0, 1e-3], p) + rng.choice([0.0, 5.0, 1e4], p)
    if p:
        X[:, rng.integers(p)] = rng.choice([1.0, 3.0])
    Z = X if p == q and rng.random() < 0.7 else np.column_stack([np.ones(n), rng.normal(size=(n, q - 1))])
    if rng.random() < 0.2:
        X = np.asfortranarray(X)
    y = 10.0 * rng.normal(size=n) + rng.choice([0.0, 1e3])
    if rng.random() < 0.2:
        y = rng.normal(size=2 * m)[codes] + 1e-4 * rng.normal(size=n)
    weights = rng.uniform(0.5, 2.0, n) if rng.random() < 0.3 else None
    offset = rng.normal(size=n) if rng.random() < 0.3 else None
    read = group_codes(codes.astype(np.int32) if rng.random() < 0.3 else codes, "g")
    return Rows(X, y, Z, read.codes, read.base, read.n_slots, weights, offset)


def outcome(make):
    """What comes of a problem: its fields that are numbers or arrays, or the message with which it is refused."""
    try:
        problem, present, *_ = make()
    except LMMError as error:
        return str(error)
    return [*problem._replace(balanced=None), present]


def conditioned(rows, known=None):
    """`condition` of rows."""
    X, y, Z, codes, base, n_slots, weights, offset = rows
    structure = one_block(Z.shape[1], "full")
    return conditioning.condition(
        y, X, Z, Codes("g", codes, base, n_slots), weights, offset, structure, z_names=None, known=known
    )


def taken_at_once(rows):
    """Whether one call of the kernels conditions them."""
    return kernels.condition_once(rows, conditioning.LIMITS) is not None


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, str):
        assert one == other
        return
    for a, b in zip(one, other, strict=True):
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("seed", range(3))
def test_one_call_gives_what_the_steps_give(seed):
    rng = np.random.default_rng(seed)
    taken = 0
    for trial in range(150):
        rows = drawn(rng, trial)
        structure = one_block(rows.Z.shape[1], "full")
        if not taken_at_once(rows):
            continue
        taken += 1
        reader = ArrayRows(rows)
        other = outcome(lambda reader=reader, structure=structure: conditioning.condition_rows(reader, structure, "g"))
        assert_same(outcome(lambda rows=rows: conditioned(rows)), other)
    assert taken > 90


@pytest.mark.parametrize("seed", range(3))
def test_what_a_design_says_by_itself_serves_for_other_responses(seed):
    rng = np.random.default_rng(seed)
    taken = 0
    for trial in range(100):
        rows = drawn(rng, trial)
        try:
            first, _, known = conditioned(rows)
        except LMMError:
            continue
        if known is None:
            continue
        assert first.balanced == kernels.balanced(
            first.packed, first.within, rows.Z.shape[1], first.rank + 1, first.structure.free
        )
        kind = trial % 4
        y = [rng.normal(size=len(rows.y)), 1e6 + rows.y, np.full(len(rows.y), 2.0), rows.X.sum(axis=1)][kind]
        other = rows._replace(y=y)
        taken += taken_at_once(other)
        assert_same(outcome(lambda other=other, known=known: conditioned(other, known)),
                    outcome(lambda other=other: conditioned(other)))  # fmt: skip
    assert taken > 25


def test_a_refit_is_the_fit_of_a_new_model(rng):
    n = 120
    groups, x = rng.integers(0, 14, n) * 2, rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    weights = rng.uniform(0.5, 2.0, n)
    ys = X.sum(axis=1) + rng.normal(size=(4, 28))[:, groups] + rng.normal(size=(4, n))
    model = flc.LinearMixedModel(ys[0], X, X, groups, weights=weights)
    for y in ys[1:]:
        again, new = model.refit(y), flc.LinearMixedModel(y, X, X, groups, weights=weights).fit()
        assert again.criterion == new.criterion
        np.testing.assert_array_equal(again.theta, new.theta)
        np.testing.assert_array_equal(again.cov_params(), new.cov_params())


def test_a_response_that_needs_a_second_look_leaves_what_is_known_of_a_design(rng):
    n = 120
    groups, X = np.repeat(np.arange(12), 10), np.column_stack([np.ones(n), rng.normal(size=n)])
    model = flc.LinearMixedModel(rng.normal(size=n), X, X, groups)
    known = model.design.shared_columns
    assert known is not None
    model.refit(X @ [1.0, 2.0] + 1e-6 * rng.normal(size=n))  # what X nearly reproduces
    assert model.design.shared_columns is known


@pytest.mark.parametrize(
    "spoil",
    [
        lambda X, y: X.__setitem__((slice(None), 2), 2.0 * X[:, 1] - 3.0),  # a combination of others
        lambda X, y: X.__setitem__((slice(None), 2), X[:, 1] + 1e-6 * X[:, 2]),  # nearly so
        lambda X, y: X.__setitem__((50, 1), np.nan),
        lambda X, y: y.__setitem__(50, np.inf),
        lambda X, y: y.__setitem__(slice(None), 3.0),  # constant
        lambda X, y: y.__setitem__(slice(None), X @ [1.0, 2.0, 3.0]),  # what X reproduces
        lambda X, y: y.__setitem__(slice(None), X @ [1.0, 2.0, 3.0] + 1e-6 * y),  # or nearly
        lambda X, y: X.__setitem__((2500, 0), 2.0),  # constant in the first rows only
    ],
)
def test_what_needs_a_second_look_is_left_to_the_steps(rng, spoil):
    n = 3000
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    y = rng.normal(size=n)
    codes = np.repeat(np.arange(n // 10), 10)
    rows = Rows(X, y, np.ones((n, 1)), codes, 0, n // 10, None, None)
    assert taken_at_once(rows)
    spoil(X, y)
    assert not taken_at_once(rows)


@pytest.mark.parametrize(("apart", "taken"), [(1.0, True), (1e-6, False)])
def test_columns_of_z_that_nearly_agree_are_left_to_the_steps(rng, apart, taken):
    n = 3000
    t = rng.normal(size=n)
    Z = np.column_stack([np.ones(n), t, t + apart * rng.normal(size=n)])
    rows = Rows(np.ones((n, 1)), rng.normal(size=n), Z, np.repeat(np.arange(n // 10), 10), 0, n // 10, None, None)
    assert taken_at_once(rows) is taken
