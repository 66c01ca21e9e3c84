"""Power by simulation, against designs where the power is known in closed form, and the rules of its arguments."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import special

import fastlmm_core as flc
from fastlmm_core import LMMResult, assume
from fastlmm_core.planning import studies
from fastlmm_core.planning.curves import PowerCurve, _place
from fastlmm_core.planning.power import PowerResult

N = 20_000
Z = 1.959963984540054


def power(*args, ddf="normal", **options):
    """Most closed forms below are of z and chi-square tests."""
    return flc.power(*args, ddf=ddf, **options)


def power_curve(*args, ddf="normal", **options):
    return flc.power_curve(*args, ddf=ddf, **options)


def near(result, exact: float) -> None:
    """Within 4.5 standard deviations of a binomial share: one seed in 150,000 is further off."""
    assert result.n_converged == result.n_sim
    assert abs(result.power - exact) < 4.5 * np.sqrt(exact * (1.0 - exact) / result.n_sim), (result, exact)


def t_power(df: int, noncentrality: float, bound: float) -> float:
    return 1.0 - special.nctdtr(df, noncentrality, bound) + special.nctdtr(df, noncentrality, -bound)


def f_power(df: int, rest: int, noncentrality: float, bound: float) -> float:
    return 1.0 - special.ncfdtr(df, rest, noncentrality, bound)


def paired(m: int, effect: float, tau2: float = 20.0, sigma2: float = 2.0) -> LMMResult:
    """Each subject once without and once with treatment: the test is the paired t statistic."""
    data = {"id": np.repeat(np.arange(m), 2), "x": np.tile([0.0, 1.0], m)}
    return assume("y ~ x + (1 | id)", data, {"Intercept": 3.0, "x": effect}, tau2, sigma2)


def arms(m: int, effects: list[float], rows: int = 4, tau2: float = 5.0, sigma2: float = 1.0) -> LMMResult:
    """Whole subjects in arms, in turn: the test is the one-way analysis of variance of their means."""
    arm = np.arange(m) % (len(effects) + 1)
    data = {"id": np.repeat(np.arange(m), rows)}
    data |= {f"arm{k}": np.repeat((arm == k).astype(float), rows) for k in range(1, len(effects) + 1)}
    names = [f"arm{k}" for k in range(1, len(effects) + 1)]
    params = dict(zip(names, effects, strict=True)) | {"Intercept": 1.0}
    return assume(f"y ~ {' + '.join(names)} + (1 | id)", data, params, [[tau2]], sigma2)


def trial(m: int = 40, visits: int = 4, slope: float = 0.3) -> LMMResult:
    group = np.repeat(np.arange(m), visits)
    data = {"id": group, "t": np.tile(np.arange(float(visits)), m), "arm": (group % 2).astype(float)}
    params = {"Intercept": 10.0, "t": -1.0, "arm": 0.0, "t:arm": slope}
    return assume("y ~ t * arm + (t | id)", data, params, [[4.0, 0.2], [0.2, 0.3]], 2.0)


# ---- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [0.0, 0.6, 1.2])
def test_paired_design(effect):
    m, sigma2 = 25, 2.0
    result = power(paired(m, effect, sigma2=sigma2), "x", n_sim=N, seed=1)
    near(result, t_power(m - 1, effect / np.sqrt(2.0 * sigma2 / m), Z))
    assert result.effect == effect
    assert abs(result.bias[0]) < 4.5 * np.sqrt(2.0 * sigma2 / m / N)
    assert result.bias == pytest.approx(result.estimate - effect)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_few_subjects_take_t_tests(effect, ddf):
    m, rows, tau2, sigma2 = 8, 4, 5.0, 0.5
    result = power(arms(m, [effect], rows, tau2, sigma2), "arm1", n_sim=N, seed=3, ddf=ddf)
    se = np.sqrt((tau2 + sigma2 / rows) * 4.0 / m)
    near(result, t_power(m - 2, effect / se, special.stdtrit(m - 2, 0.975)))
    by_default = flc.power(arms(m, [effect], rows, tau2, sigma2), "arm1", n_sim=20, seed=3)
    assert by_default.ddf == "satterthwaite"


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_joint_f_tests_agree_with_single_fits(ddf):
    model, n = trial(), 10
    result = power(model, ["arm", "t:arm"], n_sim=n, seed=6, ddf=ddf)
    for y, p in zip(model.simulate(n, 6), result.pvalues, strict=True):
        found = model.model.refit(y).test(["arm", "t:arm"], ddf=ddf)
        np.testing.assert_allclose(p, found.pvalue, rtol=1e-5)


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_two_arms(effect):
    m, rows, tau2, sigma2 = 30, 4, 5.0, 1.0
    result = power(arms(m, [effect], rows, tau2, sigma2), "arm1", n_sim=N, seed=2)
    se = np.sqrt((tau2 + sigma2 / rows) * 4.0 / m)
    near(result, t_power(m - 2, effect / se, Z))


@pytest.mark.parametrize("effects", [[0.0, 0.0], [1.0, 2.0]])
@pytest.mark.parametrize("method", ["wald", "lrt"])
def test_three_arms_together(effects, method):
    m, rows, tau2, sigma2 = 30, 4, 5.0, 1.0
    result = power(arms(m, effects, rows, tau2, sigma2), ["arm1", "arm2"], n_sim=N, seed=3, method=method)
    means = np.array([0.0, *effects])
    noncentrality = m / 3 * np.sum((means - means.mean()) ** 2) / (tau2 + sigma2 / rows)
    bound = special.chdtri(2, 0.05)
    # F = W / 2, and the likelihood ratio is m log(1 + 2 F / (m - 3))
    f = bound / 2.0 if method == "wald" else (m - 3) / 2.0 * np.expm1(bound / m)
    near(result, f_power(2, m - 3, noncentrality, f))


def test_lrt_of_one_coefficient():
    m, rows, tau2, sigma2 = 24, 3, 5.0, 1.0
    result = power(arms(m, [1.5], rows, tau2, sigma2), "arm1", n_sim=N, seed=4, method="lrt")
    bound = (m - 2) * np.expm1(special.chdtri(1, 0.05) / m)
    near(result, f_power(1, m - 2, 1.5**2 / ((tau2 + sigma2 / rows) * 4.0 / m), bound))


def test_type_one_error_with_many_subjects():
    result = power(trial(400), "t:arm", effect=0.0, n_sim=N, seed=5)
    # z where t with about m - 2 degrees of freedom is exact
    near(result, 2.0 * special.stdtr(398, -Z))


def test_level_and_pvalues():
    strict, lax = (power(trial(), "t:arm", n_sim=500, seed=1, alpha=alpha) for alpha in (0.01, 0.2))
    np.testing.assert_array_equal(strict.pvalues, lax.pvalues)
    assert strict.power == np.mean(strict.pvalues < 0.01) < np.mean(lax.pvalues < 0.2) == lax.power


def test_interval_is_that_of_clopper_and_pearson():
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for effect in (0.0, 0.3, 0.6, 5.0):
        result = power(trial(), "t:arm", effect=effect, n_sim=200, seed=3)
        exact = binomtest(round(result.power * 200), 200).proportion_ci(0.95, "exact")
        np.testing.assert_allclose((result.conf_low, result.conf_high), exact, atol=1e-9)


# ---- the same answer by other ways ---------------------------------------------------------------------------------


def unbalanced() -> LMMResult:
    rng = np.random.default_rng(8)
    group = np.repeat(np.arange(30), rng.integers(2, 7, 30))
    n = len(group)
    data = {"g": group, "year": 2000.0 + rng.uniform(0, 9, n), "x": rng.standard_normal(n), "w": rng.uniform(0.5, 2, n)}
    G = [[3.0, 0.0], [0.0, 0.02]]
    return assume("y ~ year + x + (year || g)", data, [1.0, 0.1, 0.2], G, 2.0, weights="w", offset=np.arange(n) / n)


def test_joint_test_agrees_with_single_fits():
    model, n = unbalanced(), 25
    result = power(model, ["x", "year"], n_sim=n, seed=6)
    for y, p in zip(model.simulate(n, 6), result.pvalues, strict=True):
        fit = model.model.refit(y)
        b, cov = fit.beta[[2, 1]], fit.cov[np.ix_([2, 1], [2, 1])]
        np.testing.assert_allclose(p, special.chdtrc(2, b @ np.linalg.solve(cov, b)), rtol=1e-5)


def test_one_contrast_is_one_coefficient():
    model = unbalanced()
    named, contrast = (power(model, test, n_sim=200, seed=6) for test in ("x", [[0.0, 0.0, 2.0]]))
    np.testing.assert_allclose(contrast.pvalues, named.pvalues, rtol=1e-7)
    np.testing.assert_allclose(contrast.estimate, 2.0 * named.estimate)
    assert contrast.effect == 0.4


def test_lrt_agrees_with_single_fits():
    model, n = trial(20), 20
    result = power(model, "t:arm", n_sim=n, seed=6, method="lrt")
    names = list(model.params)
    kept = [i for i, name in enumerate(names) if name != "t:arm"]
    for y, p in zip(model.simulate(n, 6), result.pvalues, strict=True):
        full, null = (
            flc.LinearMixedModel(y, X, model.model.exog_re, model.model.grouping.index).fit(reml=False)
            for X in (model.model.exog, model.model.exog[:, kept])
        )
        np.testing.assert_allclose(p, special.chdtrc(1, max(null.criterion - full.criterion, 0.0)), rtol=1e-5)


def test_simulate_gives_the_responses_that_simulate_fit_fits():
    model = trial()
    batch, drawn = model.simulate_fit(300, 7), model.simulate(300, 7)
    np.testing.assert_allclose(batch.params, model.model.fit_many(drawn).params, rtol=1e-10)
    assert drawn.shape == (300, 160)


def test_a_fit_as_source():
    fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "dict")).fit()
    result = power(fit, "Days", effect=3.0, n_sim=1000, seed=1)
    assert 0.3 < result.power < 0.7
    assert abs(result.estimate[0] - 3.0) < 0.3
    same = assume(
        "Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "pandas"), fit.params, fit.G, fit.sigma2
    )
    assert power(same, "Days", effect=3.0, n_sim=1000, seed=1).power == pytest.approx(result.power, abs=0.002)
    curve = power_curve(fit, "Days", values=[10, 18, 60], effect=3.0, seed=2)
    assert np.all(np.diff(curve.power) > 0)
    assert power(fit, "Intercept", effect=0.0, n_sim=200, seed=1, method="lrt").power < 0.2


def test_models_from_arrays():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 4)
    fit = flc.LinearMixedModel(rng.standard_normal(80), rng.standard_normal((80, 2)), None, groups).fit()
    curve = power_curve(fit, "x1", "effect", [0.0, 1.0], n_sim=100, seed=1)
    assert curve.to_frame()["power"].shape == (2,)
    assert power(fit, ["x0", "x1"], n_sim=50, seed=1, method="lrt").n_converged == 50


@pytest.mark.parametrize("test", ["t:arm", ["arm", "t:arm"]])
@pytest.mark.parametrize("method", ["wald", "lrt"])
def test_threads_do_not_matter(test, method):
    one, two = (power(trial(), test, n_sim=700, seed=9, method=method, n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.pvalues, two.pvalues)
    first, second = (power_curve(trial(), test, values=[20, 30], n_sim=300, seed=9, n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(first.power, second.power)


def test_seeds():
    model = trial()
    assert power(model, "t", seed=1).power == power(model, "t", seed=np.int64(1)).power
    generators = [np.random.default_rng(3) for _ in range(2)]
    a, b = (power(model, "t:arm", n_sim=100, seed=rng, method="lrt").pvalues for rng in generators)
    np.testing.assert_array_equal(a, b)
    assert np.any(a != power(model, "t:arm", n_sim=100, seed=generators[0], method="lrt").pvalues)
    assert np.any(power(model, "t:arm", n_sim=50).pvalues != power(model, "t:arm", n_sim=50).pvalues)
    points = power_curve(model, "t:arm", "effect", [0.3, 0.3], n_sim=50, seed=1).results
    assert np.any(points[0].pvalues != points[1].pvalues)


def test_uncertified_fits_do_not_reject(monkeypatch):
    from fastlmm_core.simulation import draws as simulation

    def lossy(*args, **options):
        batch = original(*args, **options)
        batch.status[::4] = -2
        batch.params[::4] = np.nan
        batch.bse[::4] = np.nan
        batch.criterion[::4] = np.nan
        batch.theta_o[::4] = np.nan
        return batch

    original = simulation.simulate_into
    monkeypatch.setattr(simulation, "simulate_into", lossy)
    for options in ({}, {"method": "lrt"}):
        for test in ("t:arm", ["arm", "t:arm"]):
            result = power(trial(slope=9.0), test, n_sim=100, seed=1, **options)
            assert (result.power, result.n_converged) == (0.75, 75)
            assert np.isnan(result.pvalues[::4]).all()
            assert np.isfinite(result.estimate).all()
            assert "25 not certified" in repr(result)
    assert "25 not certified" in repr(power_curve(trial(), "t", "effect", [1.0], n_sim=100, seed=1))
    monkeypatch.setattr(simulation, "simulate_into", original)
    singular = np.delete(trial(10).simulate_fit(100, 1).singular, np.arange(0, 100, 4))
    assert singular.any()
    monkeypatch.setattr(simulation, "simulate_into", lossy)
    assert power(trial(10), "t", n_sim=100, seed=1).singular_fraction == pytest.approx(singular.mean(), rel=1e-12)
    monkeypatch.setattr(simulation, "simulate_into", original)


def test_an_uncertified_null_fit_does_not_reject(monkeypatch):
    from fastlmm_core.simulation import draws as simulation

    original = simulation.simulate_into

    def lossy(*args, fit=None, **options):
        batch = original(*args, fit=fit, **options)
        if fit is not None:  # the reduced model; its criteria stay, as those of fits that stopped short do
            batch.status[::4] = -2
        return batch

    monkeypatch.setattr(simulation, "simulate_into", lossy)
    result = power(trial(slope=9.0), "t:arm", n_sim=100, seed=1, method="lrt")
    assert (result.power, result.n_converged) == (0.75, 75)
    assert np.isnan(result.pvalues[::4]).all()
    assert np.isfinite(np.delete(result.pvalues, np.arange(0, 100, 4))).all()


def test_a_draw_that_is_not_certified_has_no_pvalue():
    """Where draws are fitted one by one."""
    for certified, expected in ((True, 0.01), (False, np.nan)):
        found = SimpleNamespace(pvalue=0.01, statistic=3.0)
        fit = SimpleNamespace(converged=certified, singular=False, beta=np.ones(2), test=lambda *_, f=found, **__: f)
        truth = SimpleNamespace(again=lambda model, reml, fit=fit: fit)
        out = studies.Studies(np.zeros(1), np.ones(1, dtype=bool), np.ones(1, dtype=bool), np.zeros((1, 2)))
        asked = studies._Test(truth, np.eye(2)[1:], None, False, True, "residual", "auto", "two-sided")
        studies._study(asked, (lambda: None, None), out, 0)
        np.testing.assert_array_equal(out.pvalues, expected)
        assert out.converged[0] == certified


def test_a_column_that_depends_on_a_tested_one_does_not_take_its_place():
    g = np.repeat(np.arange(12), 4)
    data = {"g": g, "x": np.tile(np.arange(4.0), 12)}
    data["twice"] = 2.0 * data["x"]
    alone = assume("y ~ x + (1 | g)", data, {"Intercept": 1.0, "x": 0.3}, 0.5, 1.0)
    both = assume("y ~ x + twice + (1 | g)", data, {"Intercept": 1.0, "x": 0.3, "twice": 0.0}, 0.5, 1.0)
    found, wanted = (power(plan, "x", n_sim=20, seed=1, method="lrt") for plan in (both, alone))
    np.testing.assert_allclose(found.pvalues, wanted.pvalues, rtol=1e-6)
    assert found.pvalues.min() < 0.05


# ---- curves --------------------------------------------------------------------------------------------------------


def test_power_rises():
    for along, values in (("subjects", [20, 60, 180]), ("observations", [3, 5, 9]), ("effect", [0.0, 0.3, 0.6])):
        curve = power_curve(trial(visits=9), "t:arm", along, values, n_sim=1000, seed=1)
        assert np.all(np.diff(curve.power) > 0.05), curve
        assert np.all((curve.conf_low < curve.power) & (curve.power < curve.conf_high))
        np.testing.assert_array_equal(curve.values, values)


def test_subjects_are_copies_of_the_given_ones():
    curve = power_curve(arms(30, [2.0]), "arm1", values=[20, 60], n_sim=N, seed=3)
    for m, result in zip(curve.values, curve.results, strict=True):
        near(result, t_power(m - 2, 2.0 / np.sqrt(5.25 * 4.0 / m), Z))


def test_observations_are_the_first_ones():
    curve = power_curve(arms(30, [2.0], rows=6, tau2=4.0, sigma2=3.0), "arm1", "observations", [2, 6], n_sim=N, seed=3)
    for rows, result in zip(curve.values, curve.results, strict=True):
        near(result, t_power(28, 2.0 / np.sqrt((4.0 + 3.0 / rows) * 4.0 / 30), Z))


def test_observations_are_the_first_rows_of_each_group():
    from fastlmm_core.design.replication import observations

    groups = np.array([0, 1, 0, 1, 1, 0, 0, 1])
    model = assume("y ~ x + (1 | g)", {"g": groups, "x": np.arange(8.0)}, [0.0, 1.0], 1.0, 1.0).model
    rows, (codes,) = observations(model.design)(2)
    assert sorted(rows.tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(codes, groups[rows])


@pytest.mark.parametrize("order", ["in turn", "one arm after the other", "shuffled"])
def test_arms_keep_their_ratio(order):
    from fastlmm_core.design.replication import subjects

    arm = np.arange(12) % 3 == 0
    if order == "one arm after the other":
        arm = np.sort(arm)
    rows = np.repeat(np.arange(12), 2)
    if order == "shuffled":
        rows = np.random.default_rng(1).permutation(rows)
    data = {"id": rows, "arm": arm[rows].astype(float)}
    model = assume("y ~ arm + (1 | id)", data, [0.0, 1.0], 1.0, 1.0).model
    for count in (3, 6, 9, 12, 24, 30):
        chosen, (codes,) = subjects(model.design)(count)
        np.testing.assert_array_equal(np.bincount(codes), np.full(count, 2))
        assert model.exog[chosen, 1].sum() == 2 * count / 3
    # every group once before any is used again
    assert len(set(model.grouping.index[subjects(model.design)(12)[0]])) == 12


def test_different_subjects_come_in_the_order_of_their_rows():
    from fastlmm_core.design.replication import subjects

    model = unbalanced().model
    rows, (codes,) = subjects(model.design)(35)
    np.testing.assert_array_equal(rows[: model.nobs], np.arange(model.nobs))
    np.testing.assert_array_equal(model.grouping.index[rows[codes >= 30]], codes[codes >= 30] - 30)
    assert power_curve(unbalanced(), "x", values=[20, 60], n_sim=50, seed=1).results[1].n_converged == 50


def curve_of(powers, values, along="subjects", n=1000) -> PowerCurve:
    nothing = np.zeros(1)
    results = tuple(
        PowerResult("x", "wald", "normal", 0.05, p, p, p, n, n, 0.0, nothing, nothing, nothing, nothing) for p in powers
    )
    return PowerCurve(along, np.asarray(values), results, dict)


def test_target():
    # sqrt(values) 4, 8, 12 and normal quantiles of the power in a line: 0.8 lies on it
    values = np.array([16, 64, 144])
    curve = curve_of(special.ndtr(np.sqrt(values) / 4.0 - 1.5), values)
    exact = (4.0 * (special.ndtri(0.8) + 1.5)) ** 2
    assert curve.target() == curve.target(0.8) == np.ceil(exact)
    effects = curve_of(special.ndtr([-1.0, 0.0, 1.0]), [-0.1, -0.2, -0.3], "effect")
    assert effects.target(0.5) == pytest.approx(-0.2)
    assert effects.target(float(special.ndtr(0.5))) == pytest.approx(-0.25)
    assert np.isnan(curve.target(0.99999))
    assert curve.target(0.1) == 16
    # falls are averaged, order does not matter, and a power of 1 is not infinitely far
    assert curve_of([0.9, 0.4, 0.6, 0.3], [400, 200, 100, 50]).target(0.5) == 100
    assert 100 < curve_of([0.5, 1.0], [100, 200]).target(0.8) < 200
    # the exact answer of a t test
    found = power_curve(arms(30, [2.0]), "arm1", values=range(20, 81, 10), n_sim=N, seed=1).target(0.8)
    sizes = np.arange(20, 81)
    assert abs(found - sizes[t_power(sizes - 2, 2.0 / np.sqrt(5.25 * 4.0 / sizes), Z) >= 0.8][0]) <= 1


@pytest.mark.parametrize("along", ["missing", "dropout", "icc"])
def test_target_where_the_power_falls(along):
    """The largest share that leaves the power."""
    shares, z = np.array([0.3, 0.0, 0.6]), np.array([1.0, 2.0, -0.5])
    curve = curve_of(special.ndtr(z), shares, along)
    assert curve.target(float(special.ndtr(0.5))) == pytest.approx(0.4)
    assert curve.target(float(special.ndtr(1.25))) == pytest.approx(0.225)
    assert curve.target(0.3) == 0.6 and np.isnan(curve.target(0.98))
    # within groups the power rises with the intraclass correlation
    assert curve_of(special.ndtr(-z), shares, along).target(float(special.ndtr(-0.5))) == pytest.approx(0.4)


def test_parts_of_a_run_weigh_as_many_simulations_as_were_certified():
    parts = [
        PowerResult(
            "x", "wald", "normal", 0.05, 0.0, 0.0, 1.0, len(p), int(np.isfinite(p).sum()), singular, np.array([2.0]),
            np.array([mean]), np.array([mean - 2.0]), np.array(p),
        )
        for p, singular, mean in (([0.01, np.nan, np.nan], 1.0, 4.0), ([0.5, 0.02, 0.8], 0.0, 1.0))
    ]  # fmt: skip
    joined = parts[0].join(parts[1])
    assert (joined.n_sim, joined.n_converged, joined.power) == (6, 4, 2.0 / 6.0)
    assert joined.singular_fraction == 0.25
    assert joined.estimate[0] == pytest.approx(1.75) and joined.bias[0] == pytest.approx(-0.25)


def test_streams_of_values_are_apart():
    """Those of the simulations, and those of what is left out, at every place."""
    assert len({_place(7, place) for place in range(-20, 20)}) == 40


@pytest.mark.parametrize("method", ["wald", "lrt"])
def test_simulations_one_by_one_are_parts_of_one_stream(monkeypatch, method):
    """As many rows as are held at a time make no difference."""
    data = {"g": np.repeat(np.arange(8), 3), "v": np.tile(np.arange(3), 8), "x": np.tile([0.0, 1.0, 1.0], 8)}
    R = 0.4 + 0.6 * np.eye(3)
    plan = assume("y ~ x", data, [1.0, 1.0], R=R, residual="us(v | g)")
    found = power(plan, "x", n_sim=7, seed=2, method=method)
    monkeypatch.setattr(studies, "HELD", 2 * len(data["g"]))
    np.testing.assert_array_equal(power(plan, "x", n_sim=7, seed=2, method=method).pvalues, found.pvalues)
    later = power(plan, "x", n_sim=4, seed=2, method=method, first=3)
    np.testing.assert_array_equal(later.pvalues, found.pvalues[3:])


def test_target_at_a_value_is_that_value():
    # the square of a square root, off by rounding, must not be rounded up to the next subject
    for size in range(11, 400):
        assert curve_of([0.1, 0.8, 0.9], [10, size, 1000]).target(0.8) == size
    # halfway between the roots 4 and 8: 36 subjects have the power exactly; a little more takes 37
    low, high = special.ndtri([0.3, 0.9])
    middle = float(special.ndtr(0.5 * (low + high)))
    assert curve_of([0.3, 0.9], [16, 64]).target(middle) == 36
    assert curve_of([0.3, 0.9], [16, 64]).target(middle + 1e-4) == 37
    assert curve_of([0.3, 0.9], [16, 64]).target(middle - 1e-4) == 36


def test_isotonic_regression(rng):
    from fastlmm_core.planning.curves import _isotonic

    for values in ([0.4, 0.5, 0.1, 0.9], [0.9, 0.8, 0.1], rng.uniform(size=12), np.sort(rng.uniform(size=6))):
        v = np.array(values)
        n = len(v)
        # the least of the means to the right of the greatest to the left (Barlow et al. 1972, th. 1.4)
        exact = [max(min(v[j : k + 1].mean() for k in range(i, n)) for j in range(i + 1)) for i in range(n)]
        np.testing.assert_allclose(_isotonic(v), exact, rtol=1e-12)


def test_repr():
    result = power(trial(), "t:arm", n_sim=100, seed=1)
    assert repr(result).startswith(f"<PowerResult: {result.power:.3f} [")
    assert "wald test of t:arm at level 0.05, 100 simulations>" in repr(result)
    lines = repr(power_curve(trial(), "t:arm", values=[10, 20], n_sim=100, seed=1)).split("\n")
    assert lines[0] == "Power of the wald test of t:arm at level 0.05, 100 simulations each"
    assert lines[2].split() == ["subjects", "power", "2.5", "%", "97.5", "%"]
    assert [line.split()[0] for line in lines[3:]] == ["10", "20"]


def test_several_levels():
    alphas = [0.01, 0.05, 0.2]
    together = power(trial(), "t:arm", n_sim=200, seed=1, alpha=alphas)
    alone = [power(trial(), "t:arm", n_sim=200, seed=1, alpha=alpha) for alpha in alphas]
    for name in ("alpha", "power", "conf_low", "conf_high"):
        np.testing.assert_array_equal(getattr(together, name), [getattr(one, name) for one in alone])
    first = alone[0]
    assert repr(together).startswith(f"<PowerResult: {first.power:.3f} [{first.conf_low:.3f}, {first.conf_high:.3f}]; ")
    assert "at levels 0.01, 0.05, 0.2, 200 simulations>" in repr(together)
    curve = power_curve(trial(), "t:arm", values=[20, 60], n_sim=200, seed=1, alpha=alphas)
    ones = [power_curve(trial(), "t:arm", values=[20, 60], n_sim=200, seed=1, alpha=alpha) for alpha in alphas]
    np.testing.assert_array_equal(curve.power, np.column_stack([one.power for one in ones]))
    frame = curve.to_frame()
    assert frame["subjects"].tolist() == [20, 20, 20, 60, 60, 60]
    assert frame["alpha"].tolist() == alphas * 2
    np.testing.assert_array_equal(frame["conf_low"], curve.conf_low.ravel())
    assert curve.target(0.5, alpha=0.2) == ones[2].target(0.5)
    assert [len(line.split()) for line in repr(curve).split("\n")[3:]] == [10, 10]
    with pytest.raises(flc.LMMError, match=r"target\(\) needs alpha, one of the levels 0.01, 0.05, 0.2"):
        curve.target()
    with pytest.raises(flc.LMMError, match=r"alpha=0\.1 is not among the levels 0\.01, 0\.05, 0\.2"):
        curve.target(0.5, alpha=0.1)
    with pytest.raises(flc.LMMError, match=r"alpha=1\.5 must lie between 0 and 1"):
        power(trial(), "t:arm", n_sim=10, alpha=[0.05, 1.5])
    with pytest.raises(flc.LMMError, match="alpha must be a number or a sequence"):
        power(trial(), "t:arm", n_sim=10, alpha=[])


# ---- assumed models ------------------------------------------------------------------------------------------------


def columns_of(frame) -> list[str]:
    if isinstance(frame, dict):
        return list(frame)
    return list(frame.column_names if hasattr(frame, "column_names") else frame.columns)


@pytest.mark.parametrize("library", ["dict", "pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("response", [False, True])
def test_frames(library, response):
    ids = np.repeat(np.arange(10), 3)
    arm = np.array(["placebo", "drug"])[ids % 2]
    columns = {"id": ids, "t": np.tile(np.arange(3.0), 10), "arm": arm}
    if response:
        columns = {"y": np.full(30, np.nan)} | columns
    data = columns
    if library == "pyarrow":
        data = pytest.importorskip("pyarrow").table({name: list(values) for name, values in columns.items()})
    elif library != "dict":
        data = pytest.importorskip(library).DataFrame(columns)
    names = ["Intercept", "t", "arm[T.placebo]", "t:arm[T.placebo]"]
    model = assume("y ~ t * arm + (1 | id)", data, dict(zip(names, range(4), strict=True)), {"id": [[2.0]]}, 1.5)
    assert dict(model.params) == dict(zip(names, range(4), strict=True))
    assert model.model.nobs == 30
    np.testing.assert_allclose(model.G["id"], [[2.0]])
    placebo = arm == "placebo"
    np.testing.assert_allclose(model.marginal_mean, columns["t"] * (1 + 3 * placebo) + 2 * placebo)
    frame = power_curve(model, "t", "effect", [0.0, 1.0], n_sim=50, seed=1).to_frame()
    assert type(frame) is type(data)
    assert columns_of(frame)[:4] == ["effect", "power", "conf_low", "conf_high"]
    assert columns_of(data) == list(columns)  # the caller's table stays as it was


@pytest.mark.parametrize(
    "formula", ["y ~ x + (1 | g)", " log(y) ~ x + (1 | g)", "`the y` ~ x+(1|g)", "log(`y 1`)~x+(1|g)"]
)
def test_any_response(formula):
    data = {"g": np.repeat(np.arange(6), 3), "x": np.arange(18.0)}
    model = assume(formula, data, [1.0, 2.0], 1.0, 1.0)
    assert model.simulate(3, 1).shape == (3, 18)
    assert list(data) == ["g", "x"]


def test_moments_of_the_draws():
    model = unbalanced()
    Y = model.simulate(20_000, 1)
    sd = Y.std(axis=0)
    x = model.model.exog
    mean = 1.0 + 0.1 * x[:, 1] + 0.2 * x[:, 2] + np.arange(len(x)) / len(x)  # the offset is part of it
    np.testing.assert_allclose(model.marginal_mean, mean, rtol=1e-12)
    assert np.all(np.abs(Y.mean(axis=0) - mean) < 5.0 * sd / np.sqrt(len(Y)))
    z, w = model.model.exog_re, model.model.weights
    variance = 3.0 + 0.02 * z[:, 1] ** 2 + 2.0 / w
    np.testing.assert_allclose(sd**2, variance, rtol=5.0 * np.sqrt(2.0 / len(Y)))


def test_covariances_of_the_draws():
    # within a group Z G Z' + sigma^2 / weights, G with a covariance and on the scale of the errors
    rng = np.random.default_rng(3)
    G = np.array([[2.0, -0.9], [-0.9, 0.8]])
    x, w = rng.uniform(-1.0, 1.0, 12), rng.uniform(0.2, 5.0, 12)
    data = {"g": np.repeat(np.arange(3), 4), "x": x, "w": w}
    Y = assume("y ~ x + (x | g)", data, [0.0, 1.0], G, 1.5, weights="w").simulate(20_000, 1)
    Z = np.column_stack([np.ones(12), x])
    V = (Z @ G @ Z.T) * (data["g"][:, None] == data["g"]) + np.diag(1.5 / w)
    sd = np.sqrt(np.diag(V))
    assert np.abs((np.cov(Y.T) - V) / np.outer(sd, sd)).max() < 5.5 * np.sqrt(2.0 / 20_000)


def test_covariance_matrices():
    data = {"g": np.repeat(np.arange(9), 5), "x": np.tile(np.arange(5.0), 9)}

    def G(formula, given):
        return assume(f"y ~ x + {formula}", data, [0.0, 1.0], given, 2.0).G

    singular = np.array([[4.0, -2e6], [-2e6, 1e12]])  # correlation -1
    np.testing.assert_allclose(G("(x | g)", singular)["g"], singular)
    np.testing.assert_allclose(G("(x | g)", np.zeros((2, 2)))["g"], np.zeros((2, 2)))
    np.testing.assert_allclose(G("(x || g)", np.diag([2.0, 0.0]))["g"], np.diag([2.0, 0.0]))
    two = G("(1 | g) + (0 + x | g)", {"g": 2.0, "g.1": [[3.0]]})
    assert (two["g"], two["g.1"]) == (pytest.approx(2.0), pytest.approx(3.0))


def trial_data() -> dict[str, np.ndarray]:
    return {"g": np.repeat(np.arange(9), 5), "x": np.tile(np.arange(5.0), 9), "twice": np.tile(2 * np.arange(5.0), 9)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"Intercept": 1.0}}, "params gives no value for 'x'"),
        (
            {"params": {"Intercept": 1.0, "X": 1.0}},
            "params names 'X', which is not among the coefficients of this design",
        ),
        ({"params": {"Intercep": 1.0, "x": 1.0}}, "did you mean 'Intercept'"),
        ({"params": [1.0]}, "params must hold 2 values, for 'Intercept', 'x', not 1"),
        ({"params": ["a", "b"]}, "params must hold numbers"),
        ({"params": [1.0, np.nan]}, "params has values that are not finite"),
        ({"G": 1.0}, r"G must be a \(2, 2\) matrix"),
        ({"G": [[1.0, 2.0], [2.0, 1.0]]}, "G is not positive semidefinite"),
        ({"G": [[-1.0, 0.0], [0.0, 1.0]]}, "G is not positive semidefinite"),
        ({"G": [[0.0, 0.1], [0.1, 1.0]]}, "G is not positive semidefinite"),
        ({"G": [[1.0, 0.5], [0.4, 1.0]]}, "G is not symmetric"),
        ({"G": {"h": np.eye(2)}}, "G has the terms 'h'; this design has 'g'"),
        ({"G": {"g": np.eye(3)}}, r"G\['g'\] must be a \(2, 2\) matrix"),
        ({"G": [[np.inf, 0.0], [0.0, 1.0]]}, "G has values that are not finite"),
        ({"formula": "y ~ x + (x || g)", "G": [[1.0, 0.5], [0.5, 1.0]]}, "G has covariances between random effects"),
        ({"sigma2": 0.0}, "sigma2=0.0 must be a positive number"),
        ({"sigma2": [1.0]}, r"sigma2 must be a number or None, not \[1.0\]"),
        ({"sigma2": "one"}, "sigma2 must be a number or None, not 'one'"),
        ({"formula": "y ~ x + z + (x | g)"}, "`data` has no column 'z'"),
        ({"formula": "y ~ x"}, "no random-effects term"),
        ({"data": 3}, "`data` must be"),
    ],
)
def test_refused_by_assume(change, message):
    given = {"formula": "y ~ x + (x | g)", "data": trial_data(), "params": [0.0, 1.0], "G": np.eye(2), "sigma2": 1.0}
    with pytest.raises(flc.LMMError, match=message):
        assume(**(given | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": 3}, "source must be an LMMResult, not 3"),
        ({"test": "arms"}, "test='arms' is not a coefficient of the model; did you mean 'arm'"),
        ({"test": ["t", "t"]}, "test names a coefficient twice"),
        ({"test": [1.0, 0.0]}, "test must have 4 columns"),
        ({"test": []}, "test must have 4 columns"),
        ({"test": None}, "test"),
        ({"test": [["t"], ["arm", "t"]]}, "test must be an array, but its rows have different lengths"),
        ({"test": [[1, 0, 0, 0], [2, 0, 0, 0]]}, "test has rows that are combinations"),
        ({"test": [[1, 0, 0, 0]], "method": "lrt"}, "method='lrt' needs the names"),
        ({"test": [[1, 0, 0, 0]], "effect": 1.0}, "effect needs a test by the names"),
        ({"effect": [1.0, 2.0]}, "effect must hold 1 values"),
        ({"effect": np.nan}, "effect has values that are not finite"),
        ({"alpha": 1.0}, "alpha=1.0 must lie between 0 and 1"),
        ({"n_sim": 0}, "n_sim=0 must be at least 1"),
        ({"n_sim": 10.5}, "n_sim must be an integer, not 10.5"),
        ({"method": "score"}, "method='score' is unknown"),
        ({"n_jobs": 0}, "n_jobs=0 must be -1 or between"),
    ],
)
def test_refused_by_power(change, message):
    with pytest.raises(flc.LMMError, match=message):
        power(**({"source": trial(), "test": "t:arm", "n_sim": 10} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"along": "arms"}, "along='arms' is unknown"),
        ({"values": []}, "values must be a sequence"),
        ({"values": 30}, "values must be a sequence"),
        ({"values": [10.5]}, "values must be whole numbers of subjects, at least 2"),
        ({"values": [1]}, "values must be whole numbers of subjects, at least 2"),
        ({"values": [0], "along": "observations"}, "values must be whole numbers of observations, at least 1"),
        ({"values": [5], "along": "observations"}, "values: 5 observations are more than the 4 of id 0"),
        ({"values": [2], "along": "observations"}, "values: the design with 2 observations cannot be fitted"),
        ({"values": [1.0], "along": "effect", "effect": 1.0}, "effect is what along='effect' varies"),
        ({"values": [1.0], "along": "effect", "test": ["t", "arm"]}, "along='effect' needs a test of one coefficient"),
    ],
)
def test_refused_by_power_curve(change, message):
    with pytest.raises(flc.LMMError, match=message):
        power_curve(**({"source": trial(), "test": "t:arm", "values": [10], "n_sim": 10} | change))


def test_other_refusals():
    # of the third site there is one subject, which is not among four
    data = trial_data() | {"site": np.repeat(np.arange(9) // 4, 5).astype(str)}
    sites = assume("y ~ site + (1 | g)", data, [0.0, 1.0, 1.0], 1.0, 1.0)
    with pytest.raises(flc.LMMError, match=r"with 4 subjects the coefficient 'site\[T.2\]' cannot be told"):
        power_curve(sites, "Intercept", values=[9, 4], n_sim=10)
    rng = np.random.default_rng(1)
    aliased = flc.lmm("y ~ x + twice + (1 | g)", trial_data() | {"y": rng.standard_normal(45)}).fit()
    with pytest.raises(flc.LMMError, match="test uses the coefficient 'twice', which the design cannot tell"):
        power(aliased, "twice", n_sim=10)
    assert power(aliased, "x", n_sim=50, seed=1, method="lrt").n_converged == 50
    with pytest.raises(flc.LMMError, match=r"target.* needs effects of one sign"):
        curve_of([0.5, 0.1, 0.5], [-1.0, 0.0, 1.0], "effect").target()
    with pytest.raises(flc.LMMError, match="power=80 must lie between 0 and 1"):
        curve_of([0.5], [10]).target(80)


def test_exported():
    assert flc.power.__module__ == "fastlmm_core.planning.power"
    assert flc.power_curve.__module__ == "fastlmm_core.planning.curves"
    assert flc.assume is assume


def test_alternatives_that_there_are_not():
    fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    for run in (flc.power, lambda *a, **k: flc.power_curve(*a, "Subject", [10], **k)):
        with pytest.raises(flc.LMMError, match="alternative='bigger' is unknown: use 'two-sided', 'greater' or 'less'"):
            run(fit, "Days", n_sim=10, seed=1, alternative="bigger")
