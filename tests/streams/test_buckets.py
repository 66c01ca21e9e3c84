"""Groups that stay with the workers: the fit of groups that are here, by sums of sums."""

from __future__ import annotations

import pickle
from functools import cache

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.engines.one_factor.panels import Panels
from fastlmm_core.engines.one_factor.wide import WideCriterion
from fastlmm_core.streams.cross_products import Lines
from fastlmm_core.streams.shuffle import bucket_of, distinct, gathered, hashes_of, split
from streamed import FORMULA, OTHER_ORDER, client_of, cut, frame_of, simulated

pytest.importorskip("dask.dataframe")
pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    with client_of() as found:
        yield found


def rows(**more):
    data = simulated(6000, m=900, shuffled=True, **more)
    data.loc[::301, "z"] = np.nan
    return data.assign(
        w=1.0 + (data["x"] - 30.0) ** 2, o=0.1 * data["z"].fillna(0.0), name=[f"patient {v}" for v in data["g"]]
    )


CASES = [
    (FORMULA, {}), ("y ~ arm * z + (1 | name)", {}), ("y ~ z + (z || g)", {"weights": "w", "offset": "o"}),
    ("y ~ z + (1 | g:arm)", {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(client):
    """models(case): of one reading, and by their number of buckets; read once for REML and ML."""

    @cache
    def of(case):
        formula, options = CASES[case]
        frame = frame_of(cut(rows(), 700))
        made = {count: flc.lmm(formula, frame, client=client, buckets=count, **options) for count in (1, 7)}
        return flc.lmm(formula, frame, client=client, **options), made

    return of


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("case", range(len(CASES)), ids=[formula for formula, _ in CASES])
def test_the_fit_of_groups_that_are_here(models, case, reml):
    whole, parts = models(case)
    one = whole.fit(reml)
    for model in parts.values():
        assert model.nobs == one.nobs and model.factors[0].grouping.m == one.model.factors[0].grouping.m
        other = model.fit(reml)
        assert other.converged and other.criterion == pytest.approx(one.criterion, rel=OTHER_ORDER)
        np.testing.assert_allclose(other.theta, one.theta, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(other.beta, one.beta, rtol=1e-9)
        np.testing.assert_allclose(other.cov, one.cov, rtol=1e-8, atol=1e-12)
        for ddf in ("satterthwaite", *(["kenward-roger"] if reml else [])):
            a, b = one.test("z = 0", ddf=ddf), other.test("z = 0", ddf=ddf)
            np.testing.assert_allclose([b.statistic, b.df_denom], [a.statistic, a.df_denom], rtol=1e-6)
        a, b = (fit.variance_components(method="wald") for fit in (one, other))
        np.testing.assert_allclose(b["std_error"].astype(float), a["std_error"].astype(float), rtol=1e-5)
        assert str(other.summary()).splitlines()[:-1] == str(one.summary()).splitlines()[:-1]
    theta = 1.3 * one.theta
    for order in (0, 1, 2):
        a, b = (fit.model.evaluate(theta, reml, order) for fit in (one, other))
        assert b.value == pytest.approx(a.value, rel=OTHER_ORDER)
        if order:
            np.testing.assert_allclose(b.gradient, a.gradient, rtol=1e-8, atol=1e-8)
        if order == 2:
            np.testing.assert_allclose(b.hessian, a.hessian, rtol=1e-8, atol=1e-7)


def test_workers_change_no_bit(client):
    frame = frame_of(cut(rows(), 700))
    found = [flc.lmm(FORMULA, frame, client=client, buckets=5).fit()]
    with client_of(workers=1, threads=3) as other:
        found.append(flc.lmm(FORMULA, frame, client=other, buckets=5).fit())
        assert found[0].criterion == found[1].criterion
        np.testing.assert_array_equal(found[0].theta, found[1].theta)
        np.testing.assert_array_equal(found[0].beta, found[1].beta)


def test_each_line_is_in_one_bucket_with_its_bits():
    data = rows()
    for formula in (FORMULA, "y ~ z + (1 | name)", "y ~ z + (1 | g:arm)"):
        plan = flc.plan(formula, data)
        parts = cut(data, 900)
        whole = flc.merge([plan.reduce(part, key=i) for i, part in enumerate(parts)])
        reduced = [plan.reduce(part, i) for i, part in enumerate(parts)]
        splits = [split(part, 0, 4) for part in reduced]
        found = [gathered([one[b + 1] for one in splits]) for b in range(4)]
        place = {label: i for i, label in enumerate(whole.levels[0].tolist())}
        at = np.concatenate([[place[label] for label in lines.levels[0].tolist()] for lines in found])
        hashes = [hashes_of(part, 4) for part in reduced]
        assert sum(distinct([own[b] for own in hashes]) for b in range(4)).tolist() == [len(place)]
        assert sorted(at.tolist()) == list(range(len(place)))
        np.testing.assert_array_equal(np.concatenate([lines.raw for lines in found]), whole.raw[at])
        rest = flc.merge([one[0] for one in splits])
        np.testing.assert_array_equal(rest.packed, whole.packed)
        assert rest.nobs == whole.nobs and len(rest.raw) == 0
        # a label has its bucket by itself
        some = whole.levels[0][::7]
        np.testing.assert_array_equal(bucket_of(some, 4), bucket_of(whole.levels[0], 4)[::7])
        assert np.bincount(bucket_of(whole.levels[0], 4)).min() > len(place) / 8
    nothing = Lines((whole.levels[0][:0],), whole.cells[:0], whole.raw[:0])
    assert len(gathered([nothing, nothing, nothing]).raw) == 0
    np.testing.assert_array_equal(gathered([nothing, whole.lines, nothing]).raw, whole.raw)


def test_sums_of_parts_are_sums():
    model = flc.lmm(FORMULA, rows())
    problem = model.problem
    packed, q, k = problem.unpatterned(), problem.structure.q, problem.rank + 1
    exact = problem.criterion()

    class Both:
        def __init__(self):
            half = len(packed) // 2
            self.parts = Panels(packed[:half].copy(), True, q, k), Panels(packed[half:].copy(), True, q, k)
            self.effects = sum(part.effects for part in self.parts)

        def __getattr__(self, name):
            def added(*arguments):
                found = [getattr(part, name)(*arguments) for part in self.parts]
                if isinstance(found[0], tuple):
                    return type(found[0])(*(a + b for a, b in zip(*found, strict=True)))
                return found[0] + found[1]

            return added

    rows_, columns = problem.structure.positions
    other = WideCriterion(np.zeros((0, 1, 1)), problem.within, problem.n, q, k, rows_, columns, True, groups=Both())
    theta = np.full(len(rows_), 0.2)
    for a, b in zip(exact.evaluate(theta, 2), other.evaluate(theta, 2), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(other.cross(), exact.cross(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other.traces(), exact.traces(), rtol=1e-9)
    weight = np.ones((3, 3))
    np.testing.assert_allclose(other.sandwich(weight), exact.sandwich(weight), rtol=1e-8, atol=1e-8)


def test_what_is_refused(client):
    data = rows()
    frame = frame_of(cut(data, 700))
    fit = flc.lmm(FORMULA, frame, client=client, buckets=3).fit()
    for use in (
        lambda: fit.random_effects, lambda: fit.influence(source=data), lambda: fit.profile(),
        lambda: fit.predict(data.iloc[1:3], effects="all"), lambda: list(fit.augment(data)), lambda: pickle.dumps(fit),
        lambda: fit.model.factors[0].grouping.labels,
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match=r"lie in buckets with the workers; fit without buckets="):
            use()
    with pytest.raises(flc.LMMError, match=r"groups in buckets.*cannot be given"):
        fit.bootstrap(3)
    for source in (data, flc.scan(data)):
        with pytest.raises(flc.LMMError, match="buckets is for a data frame of Dask"):
            flc.lmm(FORMULA, source, buckets=3)
    with pytest.raises(flc.LMMError, match="needs workers that keep them: give client="):
        flc.lmm(FORMULA, frame, buckets=3)
    with pytest.raises(flc.LMMError, match="buckets=0 must be a positive number"):
        flc.lmm(FORMULA, frame, client=client, buckets=0)
    near = frame_of(cut(data.assign(u=data["x"] + 1e-4 * np.random.default_rng(1).normal(size=len(data))), 700))
    with pytest.raises(flc.LMMError, match="the sums alone do not decide this model"):
        flc.lmm("y ~ x + u + (1 | g)", near, client=client, buckets=3)
    between = frame_of(cut(data.assign(y=1e-5 * data["y"] + 1e4 * (data["g"] % 7)), 700))
    with pytest.raises(flc.LMMError, match="the sums alone do not decide this model"):
        flc.lmm("y ~ z + (1 | g)", between, client=client, buckets=3)
