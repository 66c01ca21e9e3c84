"""Nested factors whose levels stay with the workers: the fit of levels that are here, by sums of sums."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.engines.nested.engine import NestedCriterion
from fastlmm_core.kernels import hierarchies
from fastlmm_core.streams.nested_buckets import Held, Tree, beside, tree_of
from fastlmm_core.streams.shuffle import gathered, split
from streamed import OTHER_ORDER, client_of, cut, frame_of

pytest.importorskip("dask.dataframe")
pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    with client_of() as found:
        yield found


def rows(n=6000, rooms=400, seed=1):
    """Rooms in schools in towns, in rows of any order; `inner` numbers the rooms of a school."""
    rng = np.random.default_rng(seed)
    room = rng.integers(0, rooms, n)
    school = room // 6
    town = school // 5
    x, z = rng.normal(3.0, 2.0, n), rng.normal(size=n)
    y = 1.0 + 0.5 * x + z + rng.normal(size=n)
    for level, sd, slope in ((room, 1.0, 0.3), (school, 0.8, 0.4), (town, 1.0, 0.0)):
        y += sd * rng.normal(size=rooms)[level] + slope * rng.normal(size=rooms)[level] * x
    z[::301] = np.nan
    return pd.DataFrame({
        "y": y, "x": x, "z": z, "room": 7 * room, "school": [f"school {v}" for v in school], "town": town,
        "inner": room % 6, "w": 1.0 + (x - 3.0) ** 2, "o": 0.1 * x,
    })  # fmt: skip


CASES = [
    ("y ~ x + z + (x | room) + (x | school)", {}), ("y ~ x + z + (1 | town/school/inner)", {}),
    ("y ~ z + (1 | town) + (x || school) + (1 | room)", {"weights": "w", "offset": "o"}),
    ("y ~ x + (x | town/school)", {}),
]  # fmt: skip


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("formula", "options"), CASES)
def test_the_fit_of_levels_that_are_here(client, formula, options, reml):
    frame = frame_of(cut(rows(), 700))
    one = flc.lmm(formula, frame, client=client, **options).fit(reml)
    for count in (1, 7, 90):
        model = flc.lmm(formula, frame, client=client, buckets=count, **options)
        assert model.nobs == one.nobs
        assert [f.grouping.m for f in model.factors] == [f.grouping.m for f in one.model.factors]
        other = model.fit(reml)
        assert other.converged and other.criterion == pytest.approx(one.criterion, rel=OTHER_ORDER)
        np.testing.assert_allclose(other.theta, one.theta, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(other.beta, one.beta, rtol=1e-8)
        np.testing.assert_allclose(other.cov, one.cov, rtol=1e-6, atol=1e-12)
    for ddf in ("satterthwaite", *(["kenward-roger"] if reml else [])):
        last = np.eye(len(one.beta))[-1]
        a, b = one.test(last, ddf=ddf), other.test(last, ddf=ddf)
        np.testing.assert_allclose([b.statistic, b.df_denom], [a.statistic, a.df_denom], rtol=1e-6)
    a, b = (fit.variance_components(method="wald") for fit in (one, other))
    np.testing.assert_allclose(b["std_error"].astype(float), a["std_error"].astype(float), rtol=1e-5)
    assert str(other.summary()).splitlines()[:-1] == str(one.summary()).splitlines()[:-1]
    theta = 1.3 * one.theta + 0.01
    for order in (0, 1, 2):
        a, b = (fit.model.evaluate(theta, reml, order) for fit in (one, other))
        assert b.value == pytest.approx(a.value, rel=OTHER_ORDER)
        if order:
            np.testing.assert_allclose(b.gradient, a.gradient, rtol=1e-8, atol=1e-8)
        if order == 2:
            np.testing.assert_allclose(b.hessian, a.hessian, rtol=1e-8, atol=1e-7)


def test_workers_change_no_bit(client):
    frame = frame_of(cut(rows(), 700))
    found = [flc.lmm(CASES[0][0], frame, client=client, buckets=5).fit()]
    with client_of(workers=1, threads=3) as other:
        found.append(flc.lmm(CASES[0][0], frame, client=other, buckets=5).fit())
        assert found[0].criterion == found[1].criterion
        np.testing.assert_array_equal(found[0].theta, found[1].theta)
        np.testing.assert_array_equal(found[0].beta, found[1].beta)


def test_all_below_an_outermost_level_is_in_its_bucket():
    data = rows()
    plan = flc.plan("y ~ x + (1 | room) + (x | town) + (1 | school)", data)
    reduced = [plan.reduce(part, i) for i, part in enumerate(cut(data, 900))]
    whole = flc.merge(reduced)
    # in the order of the formula
    order, outermost = [0, 2, 1], 1
    splits = [split(part, outermost, 4) for part in reduced]
    found = [gathered([one[b + 1] for one in splits]) for b in range(4)]
    assert np.sum([[len(own) for own in lines.levels] for lines in found], axis=0).tolist() == [
        len(own) for own in whole.levels
    ]
    trees = [tree_of(lines, order) for lines in found if len(lines.raw)]
    together = beside(trees)
    assert together.sizes == [len(whole.levels[f]) for f in order]
    np.testing.assert_array_equal(np.sort(together.raw, axis=0), np.sort(whole.raw, axis=0))
    for tree in (*trees, together):
        some = tree.first(25)
        assert 25 <= len(some.raw) < 25 + 60 or len(some.raw) == len(tree.raw)
        np.testing.assert_array_equal(np.unique(some.parents[1]), np.arange(some.sizes[2]))
        kept = [own.tobytes() for own in some.raw]
        assert kept == [own.tobytes() for own in tree.raw if own.tobytes() in set(kept)]
    assert tree_of(found[0], [1, 0, 2]) is None
    crossed = flc.plan("y ~ x + (1 | room) + (1 | arm)", data.assign(arm=np.arange(len(data)) % 9))
    assert tree_of(crossed.reduce(data.assign(arm=np.arange(len(data)) % 9), 0).lines, [0, 1]) is None


def halves(problem):
    """The levels of the problem of two factors as those of two buckets."""
    chain = problem.chain
    sizes = [problem.n_levels[f] for f in chain.order]
    out = []
    for first in (True, False):
        some = (np.arange(sizes[-1]) < sizes[-1] // 3) == first
        below = some[chain.parents[0]]
        number = np.cumsum(some) - 1
        tree = Tree(chain.raw[below], [number[chain.parents[0][below]]], [int(below.sum()), int(some.sum())])
        out.append(Held(tree, chain.z_map, chain.xy_map))
    return out


class Added:
    def __init__(self, parts):
        self.parts, self.calls = parts, 0

    def values(self, factors):
        found = [part.values(factors) for part in self.parts]
        return sum(own for own, _ in found), np.sum([own for _, own in found], axis=0)

    def derivatives(self, factors, weight, asked):
        self.calls += 1
        return np.sum([part.derivatives(factors, weight, asked) for part in self.parts], axis=0)


def engine_of(problem, levels):
    within = problem._packed[1]
    parts = [(problem.columns[f], problem.chain.maps[f]) for f in problem.chain.order]
    return NestedCriterion(levels, within, problem.gram, problem.n, parts, problem.structure, lambda: None)


@pytest.mark.parametrize("reml", [True, False])
def test_sums_of_parts_are_sums(reml):
    problem = flc.lmm(CASES[0][0], flc.scan(rows())).problem
    exact = problem.criterion()
    # buckets travel without their work space
    levels = Added([pickle.loads(pickle.dumps(part)) for part in halves(problem)])
    other = engine_of(problem, levels)
    exact.reml = other.reml = reml
    rng = np.random.default_rng(3)
    for average in (False, True):
        exact.average = other.average = average
        theta = np.abs(rng.normal(size=exact.n_par))
        for a, b in zip(exact.evaluate(theta, 2), other.evaluate(theta, 2), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(other.curvature(), exact.curvature(), rtol=1e-8, atol=1e-7)
    np.testing.assert_allclose(other.cross(), exact.cross(), rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(other.traces(), exact.traces(), rtol=1e-9)
    np.testing.assert_allclose(other.precision(), exact.precision(), rtol=1e-9)
    weight = np.ones((10, 10))
    np.testing.assert_allclose(other.sandwich(weight), exact.sandwich(weight), rtol=1e-7, atol=1e-7)
    # what another engine has asked for in between changes nothing
    again = engine_of(problem, levels)
    again.reml = reml
    theta = 0.7 * theta
    other.evaluate(theta, 0)
    again.evaluate(0.1 * theta, 2)
    np.testing.assert_allclose(other.evaluate(theta, 2)[1], exact.evaluate(theta, 2)[1], rtol=1e-9, atol=1e-7)


def test_an_exception_of_a_bucket_is_the_callers():
    problem = flc.lmm(CASES[0][0], flc.scan(rows())).problem

    class Lost(Added):
        def derivatives(self, factors, weight, asked):
            if self.calls:
                raise RuntimeError("the worker is gone")
            return super().derivatives(factors, weight, asked)

    theta = np.full(6, 0.3)
    engine = engine_of(problem, Lost(halves(problem)))
    engine.evaluate(theta, 2)
    with pytest.raises(RuntimeError, match="the worker is gone"):
        engine.traces()
    with pytest.raises(RuntimeError, match="the worker is gone"):
        engine.evaluate(2.0 * theta, 2)
    with pytest.raises(AttributeError):
        engine_of(problem, object()).evaluate(theta, 0)
    with pytest.raises(ValueError, match="more than 16 grouping factors"):
        hierarchies.FamilySums(*[problem._packed[0], problem._families._replace(starts=[np.zeros(1)] * 17)], 2, 4)


def test_what_is_refused(client):
    data = rows()
    frame = frame_of(cut(data, 700))
    fit = flc.lmm(CASES[0][0], frame, client=client, buckets=3).fit()
    for use in (
        lambda: fit.random_effects, lambda: fit.profile(), lambda: fit.predict(data.iloc[1:3], effects="all"),
        lambda: list(fit.augment(data)), lambda: pickle.dumps(fit),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match=r"lie in buckets with the workers; fit without buckets="):
            use()
    with pytest.raises(flc.LMMError, match=r"groups in buckets.*cannot be given"):
        fit.bootstrap(3)
    data = data.assign(arm=np.arange(len(data)) % 7, alias=data["room"] + 1)
    frame = frame_of(cut(data, 700))
    for random in ("(1 | school) + (1 | arm)", "(1 | room) + (1 | alias)", "(1 | room) + (1 | school) + (1 | arm)"):
        for count in (1, 8):
            with pytest.raises(flc.LMMError, match=r"nested in each other, and 'room|'school.* are not: leave it out"):
                flc.lmm(f"y ~ x + {random}", frame, client=client, buckets=count)
    for changed in (
        data.assign(y=1e-5 * data["y"] + 1e4 * (data["room"] % 9)),
        data.assign(y=1e-9 * data["y"] + data["x"]),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match="the sums alone do not decide this model"):
            flc.lmm("y ~ x + (1 | room) + (1 | school)", frame_of(cut(changed, 700)), client=client, buckets=3)
    with pytest.raises(flc.LMMError, match="the sums alone do not decide this model"):
        flc.lmm("y ~ school + (1 | room) + (1 | school)", frame, client=client, buckets=3)
