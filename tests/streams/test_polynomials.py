"""Recurrences of orthogonal polynomials from sums of powers, against exact orthogonalisation of the rows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.streams.polynomials import TOLD, PowerSums, basis
from streamed import cut, simulated

DIGITS = 1e-14
"""Of numbers that are rounded once."""


def exact(x, degree):
    """Shifts and squared norms of monic orthogonal polynomials, by Gram and Schmidt on fractions."""
    x = [Fraction(value) for value in x.tolist()]
    P = [[Fraction(1)] * len(x)]
    for _ in range(degree):
        column = [a * b for a, b in zip(x, P[-1], strict=True)]
        for other in P:
            share = sum(a * b for a, b in zip(column, other, strict=True)) / sum(b * b for b in other)
            column = [a - share * b for a, b in zip(column, other, strict=True)]
        P.append(column)
    norms = [sum(b * b for b in column) for column in P]
    alpha = [sum(a * b * b for a, b in zip(x, column, strict=True)) / n for column, n in zip(P, norms, strict=True)]
    values = np.array([[float(v) / float(n) ** 0.5 for v in column] for column, n in zip(P, norms, strict=True)]).T
    return [float(a) for a in alpha[:degree]], [float(n) for n in norms], values[:, 1:]


def columns():
    rng = np.random.default_rng(4)
    return {
        "normal": rng.normal(size=60),
        "far": 1e5 + rng.normal(size=60),
        "years": rng.integers(1990, 2020, 60).astype(float),
        "first one away": np.append(50.0, rng.normal(size=59)),
        "small": 1e-30 * rng.normal(size=60),
    }


@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize("kind", list(columns()))
def test_recurrence_against_fractions(kind, degree):
    x = columns()[kind]
    sums = PowerSums(float(x[0]), degree)
    for part in np.array_split(x, 7):
        sums.see(part)
    alpha, norms = sums.recurrence("poly(x, 2)", degree)
    shifts, squares, values = exact(x, degree)
    spread = np.ptp(x)
    np.testing.assert_allclose(list(alpha.values()), shifts, rtol=DIGITS, atol=DIGITS * spread)
    np.testing.assert_allclose(list(norms.values()), squares, rtol=1e-13)
    centre = float(np.mean(x[:9]))
    turn = basis(alpha, norms, degree, centre)
    told = np.vander(x - centre, degree + 1, increasing=True) @ turn
    assert sums.amplified(centre, turn) < TOLD
    np.testing.assert_allclose(told, values, atol=max(1e-13, 10.0 * sums.amplified(centre, turn)))


def test_sums_of_parts_about_other_numbers_add_up():
    x = columns()["years"]
    whole, one, other = PowerSums(x[0], 4), PowerSums(x[0], 4), PowerSums(x[-1] + 7.0, 4)
    whole.see(x)
    one.see(x[:20])
    other.see(x[20:])
    one.take(other)
    np.testing.assert_array_equal(one.sums.hi, whole.sums.hi)
    assert one.about(0.0) == whole.about(0.0) == [sum(Fraction(v) ** j for v in x.tolist()) for j in range(9)]


@pytest.mark.parametrize(
    ("x", "degree"),
    [
        (np.tile([0.0, 1.0], 30), 2),
        (np.tile([0.0, 0.1, 0.3], 20), 3),
        (np.full(30, 2.5), 1),
        (np.append(0.0, 1e9 + np.arange(60) / 60.0), 5),
        (np.append(0.0, 1e9 + np.arange(60) / 60.0), 2),
        (np.append(1.0, np.full(9, 1e200)), 3),
    ],
)
def test_too_few_values_or_digits_are_refused(x, degree):
    sums = PowerSums(float(x[0]), degree)
    sums.see(x)
    with pytest.raises(flc.LMMError, match=rf"poly\(x, {degree}\).*fewer than {degree + 1} different values"):
        sums.recurrence(f"poly(x, {degree})", degree)


def test_first_rows_far_from_the_others_are_refused_where_they_cannot_be_read_again():
    data = simulated(4000)
    data["t"] = np.random.default_rng(2).normal(size=len(data))
    data.loc[:49, "t"] += 1e7
    formula = "y ~ poly(t, 2) + (1 | g)"
    with pytest.raises(flc.LMMError, match="the first rows lie so far from most others"):
        flc.lmm(formula, flc.scan(iter(cut(data, 50))))
    one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 50))).fit()
    assert other.criterion == pytest.approx(one.criterion, rel=1e-9)


def test_first_rows_with_few_values():
    data = simulated(4000)
    data["t"] = np.where(np.arange(len(data)) < 100, np.arange(len(data)) % 2, data["z"])
    formula = "y ~ poly(t, 3) + (1 | g)"
    one = flc.lmm(formula, data).fit()
    for source in (cut(data, 50), iter(cut(data, 50))):
        assert flc.lmm(formula, flc.scan(source)).fit().criterion == pytest.approx(one.criterion, rel=1e-12)


@pytest.mark.parametrize("text", ["poly(x, 2)", "poly(x,degree = 2)", "poly(x, 2, raw=False)", "poly(`x`, 2)"])
def test_ways_of_writing_it(text):
    data = simulated(3000)
    one = flc.lmm("y ~ poly(x, 2) + (1 | g)", data).fit()
    for source in (flc.scan(cut(data, 400)), flc.scan(iter(cut(data, 400)))):
        assert flc.lmm(f"y ~ {text} + (1 | g)", source).fit().criterion == pytest.approx(one.criterion, rel=1e-12)


def test_plans_of_other_machines_see_the_same_powers():
    data = simulated(3000)
    data = data.sort_values("x").reset_index(drop=True)
    plan = flc.plan("y ~ poly(x, 3) + (1 | g)", flc.scan(cut(data, 400)))
    parts = [plan.reduce(data.iloc[:900], key=0), plan.reduce(data.iloc[900:], key=1)]
    other = flc.lmm(plan, flc.merge(parts)).fit()
    one = flc.lmm("y ~ poly(x, 3) + (1 | g)", data).fit()
    assert other.criterion == pytest.approx(one.criterion, rel=1e-12)
    np.testing.assert_allclose(other.params, one.params, rtol=1e-8)
