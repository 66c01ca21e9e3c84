"""Several grouping factors: every quantity of the block elimination against dense matrices, and lme4's fits."""

from __future__ import annotations

import csv
import json
import pickle

import numpy as np
import pytest

import oracle
from dense_factors import CASES, Dense, close, compare_every_quantity, make
from fastlmm_core import LinearMixedModel, kernels
from fastlmm_core.covariance.parameters import Block, CovarianceStructure
from fastlmm_core.design.grouping import Codes
from fastlmm_core.design.terms import RandomTerm
from fastlmm_core.engines import choose
from fastlmm_core.engines.choose import condition_factors
from fastlmm_core.engines.crossed import engine as blocked
from fastlmm_core.engines.crossed.problem import Factor
from fastlmm_core.engines.crossed.start import factors_start
from fastlmm_core.engines.one_factor.conditioning import condition
from fastlmm_core.engines.scaling import criterion_offset
from fastlmm_core.errors import LMMError
from fastlmm_core.estimation import certificate, methods, optimize


@pytest.mark.parametrize("singular", [False, True, "zero", "each"])
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "q", "weights"), CASES)
def test_every_quantity_against_dense_matrices(kind, q, weights, reml, singular):
    compare_every_quantity(kind, q, weights, reml, singular)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("kind", ["mixed", "crossed"])
def test_the_gradient_beside_many_fixed_effects(kind, reml, rng):
    y, X, factors, w, off, structure = make(kind, 7, 2, True)
    X = np.column_stack([X, rng.normal(size=(len(y), 8))])
    problem = condition_factors(y, X, factors, w, off, structure)
    criterion = problem.criterion()
    criterion.reml = reml
    theta = rng.uniform(0.3, 0.8, structure.n_parameters)
    gradient = criterion.evaluate(theta, 1)[1]
    dense = Dense(problem, factors, X, y, w, off)

    def value(moved):
        factor = structure.factor(moved)
        return dense.at(factor @ factor.T, reml)

    steps = 1e-4 * np.eye(len(theta))
    near = [8.0 * (value(theta + h) - value(theta - h)) - value(theta + 2 * h) + value(theta - 2 * h) for h in steps]
    # differences of fourth order lose what the rounding of the criterion is of the step
    assert gradient == pytest.approx(np.array(near) / 12e-4, abs=1e-7 * np.abs(gradient).max())


@pytest.mark.parametrize("kind", ["nested", "mixed", "crossed"])
@pytest.mark.parametrize("singular", [False, True])
def test_differenced_second_derivatives(kind, singular, monkeypatch):
    y, X, factors, w, off, structure = make(kind, 3, 2)
    problem = condition_factors(y, X, factors, w, off, structure)
    criterion = problem.criterion()
    theta = np.full(structure.n_parameters, 0.4)
    theta[-1] = 0.0 if singular else 0.4
    criterion.evaluate(theta, 1)
    exact = criterion.curvature()
    monkeypatch.setattr(blocked, "DENSE_UP_TO", 0)
    # another one: traces are kept as long as theta stays
    other = problem.criterion()
    other.evaluate(theta, 1)
    close(other.curvature(), exact, 1e-8)
    assert other.evaluate(theta, 0)[0] == problem.criterion().evaluate(theta, 0)[0]


@pytest.mark.parametrize("q", [1, 2])
def test_one_factor_is_the_cluster_criterion(q):
    y, X, factors, w, off, structure = make("one", 5, q, True)
    factor = factors[0]
    problem = condition_factors(y, X, factors, w, off, structure)
    other, *_ = condition(y, X, factor.Z, Codes("g", factor.codes, 0, factor.m), w, off, structure)
    for reml in (True, False):
        engines = problem.criterion(), other.criterion()
        factors_natural = np.tril(np.full((q, q), 0.5))
        out = []
        for engine, p in zip(engines, (problem, other), strict=True):
            engine.reml = reml
            theta = structure.theta(structure.canonical(np.linalg.solve(p.z_map, factors_natural)))
            value, gradient, hessian = engine.evaluate(theta, 2)
            out.append((value + criterion_offset(p, reml), gradient, hessian))
        assert abs(out[0][0] - out[1][0]) < 1e-9
        close(out[0][1], out[1][1], 1e-7)
        close(out[0][2], out[1][2], 1e-7)


def fitted(problem, reml=True):
    criterion = problem.criterion()
    criterion.reml = reml
    found = kernels.minimize_newton(criterion, factors_start(problem, problem.criterion()), tolerance=1e-9)
    value, _, _ = criterion.evaluate(found[0], 2)
    beta, r2, _, _ = criterion.solution()
    factor = problem.structure.natural(problem.z_map, problem.structure.factor(found[0]))
    nu = problem.n - problem.rank if reml else problem.n
    return {
        "criterion": value + criterion_offset(problem, reml),
        "beta": problem.beta_base + problem.scale * problem.x_map @ beta,
        "sigma": problem.scale * np.sqrt(r2 / nu),
        "theta": problem.structure.theta(factor),
        "evaluations": found[6],
        "decrement": found[4],
    }


def read(name):
    with (oracle.REFERENCE / "data" / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: [row[key] for row in rows] for key in rows[0]}


def coded(*columns):
    labels = [":".join(parts) for parts in zip(*columns, strict=True)]
    return np.unique(labels, return_inverse=True)[1]


def dummies(values):
    names = sorted(set(values))
    return [np.array([float(v == name) for v in values]) for name in names[1:]]


def reference_model(name):
    if name == "pastes":
        data = read("pastes")
        y, X = data["strength"], np.ones((60, 1))
        codes = [coded(data["cask"], data["batch"]), coded(data["batch"])]
    elif name == "penicillin":
        data = read("penicillin")
        y, X = data["diameter"], np.ones((144, 1))
        codes = [coded(data["plate"]), coded(data["sample"])]
    elif name == "machines_nested":
        data = read("machines")
        y, X = data["score"], np.column_stack([np.ones(54), *dummies(data["Machine"])])
        codes = [coded(data["Machine"], data["Worker"]), coded(data["Worker"])]
    else:
        data = read("cake")
        y = data["angle"]
        recipe, temperature = dummies(data["recipe"]), dummies(data["temperature"])
        X = np.column_stack([np.ones(270), *recipe, *temperature, *(t * r for t in temperature for r in recipe)])
        codes = [coded(data["recipe"], data["replicate"])]
    y = np.array(y, dtype=float)
    factors = [Factor(np.ones((len(y), 1)), c, int(c.max()) + 1, "") for c in codes]
    return y, X, factors, CovarianceStructure(tuple(Block(i, i + 1, "full") for i in range(len(codes))))


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", ["pastes", "penicillin", "machines_nested", "cake"])
def test_fits_of_lme4(name, reml):
    y, X, factors, structure = reference_model(name)
    record = json.loads((oracle.REFERENCE / f"{name}.json").read_text())["reml" if reml else "ml"]
    fit = fitted(condition_factors(y, X, factors, None, None, structure), reml)
    expected = record["reml_criterion"] if reml else -2.0 * record["loglik"]
    assert abs(fit["criterion"] - expected) < 1e-10 * abs(expected)
    assert np.abs(fit["theta"] - record["theta"]).max() < 1e-5 * max(record["theta"])
    assert abs(fit["sigma"] - record["sigma"]) < 1e-6 * record["sigma"]
    assert np.abs(np.array(fit["beta"]) - list(record["beta"].values())).max() < 1e-6 * np.abs(fit["beta"]).max()
    assert fit["decrement"] < 1e-8
    assert fit["evaluations"] <= 12


@pytest.mark.parametrize("kind", ["nested3", "mixed", "crossed3", "schools"])
def test_order_of_rows_levels_and_factors_does_not_matter(kind):
    y, X, factors, w, off, structure = make(kind, 11, 1, True)
    rng = np.random.default_rng(2)
    here = condition_factors(y, X, factors, w, off, structure)
    rows = rng.permutation(len(y))
    turned = rng.permutation(len(factors))
    relabel = [rng.permutation(f.m) for f in factors]
    others = [Factor(factors[f].Z[rows], relabel[f][factors[f].codes[rows]], factors[f].m, "") for f in turned]
    there = condition_factors(y[rows], X[rows], others, w[rows], off[rows], structure)
    theta = rng.uniform(0.2, 1.0, len(factors))
    a, b = here.criterion(), there.criterion()
    value, gradient, hessian = a.evaluate(theta, 2)
    value_b, gradient_b, hessian_b = b.evaluate(theta[turned], 2)
    assert abs(value + criterion_offset(here, True) - value_b - criterion_offset(there, True)) < 1e-9
    close(gradient_b, gradient[turned], 1e-9)
    close(hessian_b, hessian[np.ix_(turned, turned)], 1e-9)
    beta = a.solution()[0]
    effects = here.effects(np.diag(theta), beta)
    effects_b = there.effects(np.diag(theta[turned]), b.solution()[0])
    for i, f in enumerate(turned):
        close(effects_b[i][relabel[f]], effects[f], 1e-9)


def test_fixed_and_constrained_columns():
    y, X, factors, w, off, structure = make("mixed", 5, 1)
    problem = condition_factors(y, X, factors, w, off, structure)
    rng = np.random.default_rng(0)
    T = np.zeros((4, 3))
    T[:3, :2] = rng.normal(size=(3, 2))
    T[:, 2] = [0.3, -0.2, 0.1, 1.0]
    criterion = problem.criterion(T)
    criterion.reml = False
    theta = np.array([0.5, 0.4, 0.3])
    value, gradient, _ = criterion.evaluate(theta, 1)
    dense = Dense(problem, factors, X, y, w, off)
    dense.xy = dense.xy @ T
    assert abs(value - dense.at(np.diag(theta**2), False)) < 1e-10 * abs(value)
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-5
        slope = (criterion.evaluate(theta + step)[0] - criterion.evaluate(theta - step)[0]) / 2e-5
        assert abs(slope - gradient[i]) < 1e-6 * max(1.0, abs(slope))


def test_rotation_of_coordinates():
    y, X, factors, w, off, structure = make("crossed", 5, 2)
    problem = condition_factors(y, X, factors, w, off, structure)
    turn = np.zeros((4, 4))
    for i in (0, 2):
        turn[i : i + 2, i : i + 2] = np.linalg.qr(np.random.default_rng(i).normal(size=(2, 2)))[0]
    theta = np.array([0.5, 0.2, 0.4, 0.3, -0.1, 0.6])
    criterion = problem.criterion()
    criterion.average = False
    criterion.rotate(turn)
    value, gradient, hessian = criterion.evaluate(theta, 2)
    plain = problem.criterion()
    factor = structure.canonical(turn.T @ structure.factor(theta))
    assert abs(plain.evaluate(structure.theta(factor))[0] - value) < 1e-10 * abs(value)
    for i in range(6):
        step = np.zeros(6)
        step[i] = 1e-5
        up, down = criterion.evaluate(theta + step, 1), criterion.evaluate(theta - step, 1)
        assert abs((up[0] - down[0]) / 2e-5 - gradient[i]) < 1e-6 * max(1.0, abs(gradient[i]))
        close((up[1] - down[1]) / 2e-5, hessian[i], 1e-6)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("kind", ["crossed", "mixed", "schools"])
def test_a_rotation_where_it_stands_costs_nothing(kind, average):
    y, X, factors, w, off, structure = make(kind, 5, 2)
    problem = condition_factors(y, X, factors, w, off, structure)
    factor = np.zeros((structure.q, structure.q))
    factor[structure.positions] = np.random.default_rng(2).normal(size=structure.n_parameters)
    criterion = problem.criterion()
    criterion.average = average
    value = criterion.evaluate(structure.theta(factor), 2)[0]
    turn, axes = optimize._principal_axes(factor, structure)
    criterion.rotate(turn)
    theta = structure.theta(axes)
    found = criterion.evaluate(theta, 2)
    assert criterion.n_evaluations == 1
    assert found[0] == value
    fresh = problem.criterion()
    fresh.average = average
    fresh.rotate(turn)
    expected = fresh.evaluate(theta, 2)
    close(found[1], expected[1], 1e-9)
    close(found[2], expected[2], 1e-9)
    # what was known is forgotten elsewhere, for the other criterion, and after a change of state
    criterion.rotate(None)
    assert criterion.evaluate(theta, 0)[0] == problem.criterion().evaluate(theta, 0)[0]
    criterion.evaluate(structure.theta(factor), 2)
    criterion.rotate(turn)
    criterion.reml = False
    assert abs(criterion.evaluate(theta, 0)[0] - value) > 1e-3


def wide(rng, sizes=(24, 16), q=7):
    """Two crossed factors with many effects, most of them without variance."""
    n = sizes[0] * sizes[1]
    codes = [np.arange(n) % sizes[0], np.arange(n) // sizes[0]]
    X = np.column_stack([np.ones(n), rng.choice([-1.0, 1.0], size=(n, q - 1))])
    y = X[:, 1] + rng.normal(size=n)
    for c, m in zip(codes, sizes, strict=True):
        y += rng.normal(size=m)[c] + X[:, 1] * rng.normal(size=m)[c]
    return y, X, codes


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_certificate_at_the_boundary_takes_no_evaluation(seed):
    y, X, codes = wide(np.random.default_rng(seed))
    terms = [RandomTerm(X, c, name=name) for c, name in zip(codes, "ab", strict=True)]
    problem = LinearMixedModel(y, X, terms=terms).problem
    engine = problem.criterion()
    theta, n, levels = problem.start(engine), problem.n, problem.levels
    found = methods.newton(engine, theta, maxiter=200, tolerance=1e-9)
    before = engine.n_evaluations
    optimum, _ = certificate.settle(engine, problem.structure, found, levels, n, "newton", "")
    assert optimum.converged
    assert optimum.null_space.shape[1] > 1
    assert not np.array_equal(optimum.theta, found.theta)
    assert engine.n_evaluations == before
    value, gradient, hessian = problem.criterion().evaluate(optimum.theta, 2)
    assert optimum.value == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(optimum.gradient, gradient, atol=1e-9)
    close(optimum.hessian, hessian, 1e-9)


def test_wide_terms_take_few_evaluations():
    y, X, codes = wide(np.random.default_rng(1))
    terms = [RandomTerm(X, c, name=name) for c, name in zip(codes, "ab", strict=True)]
    result = LinearMixedModel(y, X, terms=terms).fit()
    assert result.converged
    assert result.optimum.singular
    assert result.optimum.n_evaluations <= 40
    # an optimiser without second derivatives does no better
    assert result.criterion <= LinearMixedModel(y, X, terms=terms).fit(method="l-bfgs-b").criterion + 1e-6


@pytest.mark.parametrize("small", [1e-3, 1e-5])
def test_small_residual_variances(small):
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 15, 300), rng.integers(0, 10, 300)]
    y = 3.0 + rng.normal(size=15)[codes[0]] + rng.normal(size=10)[codes[1]] + small * rng.normal(size=300)
    result = LinearMixedModel(y, np.ones((300, 1)), terms=[RandomTerm(None, c) for c in codes]).fit()
    assert result.converged
    # as good as without shrinkage
    fixed = np.column_stack([codes[0][:, None] == np.arange(15), codes[1][:, None] == np.arange(1, 10)]).astype(float)
    rest = y - fixed @ np.linalg.lstsq(fixed, y, rcond=None)[0]
    assert abs(result.sigma2 / (rest @ rest / (300 - 24)) - 1.0) < 1e-4


def test_a_response_without_residual_variation_is_refused():
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 15, 300), rng.integers(0, 10, 300)]
    y = 3.0 + rng.normal(size=15)[codes[0]] + rng.normal(size=10)[codes[1]]
    with pytest.raises(LMMError, match="reproduced by the random effects to rounding error"):
        LinearMixedModel(y, np.ones((300, 1)), terms=[RandomTerm(None, c) for c in codes]).fit()


def test_an_offset_of_a_million_million():
    y, X, factors, _, _, structure = make("crossed", 9, 1)
    near = fitted(condition_factors(y, X, factors, None, None, structure))
    far = fitted(condition_factors(np.round(y, 3) + 1e9, X, factors, None, None, structure))
    rounded = fitted(condition_factors(np.round(y, 3), X, factors, None, None, structure))
    assert abs(far["criterion"] - rounded["criterion"]) < 1e-4
    assert abs(near["criterion"] - rounded["criterion"]) < 1.0


def test_a_factor_without_variance_is_found():
    rng = np.random.default_rng(4)
    codes = [np.repeat(np.arange(12), 10), np.arange(120) % 8]
    noise = rng.normal(size=120)
    # no variation between levels of the second factor
    noise -= np.array([noise[codes[1] == j].mean() for j in range(8)])[codes[1]]
    y = rng.normal(size=12)[codes[0]] + noise
    factors = [Factor(np.ones((120, 1)), c, int(c.max()) + 1, "") for c in codes]
    fit = fitted(condition_factors(y, np.ones((120, 1)), factors, None, None, make("crossed", 0)[5]))
    assert fit["theta"][1] < 1e-6
    assert fit["decrement"] < 1e-8


def test_dropped_columns_and_refusals():
    y, X, factors, _, _, structure = make("crossed", 9, 1)
    wide = np.column_stack([X, X[:, 1] + 2.0 * X[:, 2]])
    problem = condition_factors(y, wide, factors, None, None, structure)
    assert problem.rank == 3
    plain = condition_factors(y, X, factors, None, None, structure)
    theta = np.array([0.5, 0.5])
    close(problem.criterion().evaluate(theta)[0], plain.criterion().evaluate(theta)[0], 1e-10)
    with pytest.raises(LMMError, match="constant"):
        condition_factors(np.ones(60), X, factors, None, None, structure)
    with pytest.raises(LMMError, match="one observation"):
        each = Factor(np.ones((60, 1)), np.arange(60), 60, "row")
        condition_factors(y, X, [each, factors[1]], None, None, structure)
    with pytest.raises(LMMError, match="not finite"):
        condition_factors(np.where(np.arange(60) == 3, np.nan, y), X, factors, None, None, structure)


def large_nested(weights=False, top=60):
    rng = np.random.default_rng(8)
    n = top * 40
    order = rng.permutation(n)
    a, b = np.repeat(np.arange(top), 40)[order], np.repeat(np.arange(top * 8), 5)[order]
    b = rng.permutation(top * 8)[b]
    Z = np.column_stack([np.ones(n), rng.normal(size=n) + 2000.0])
    X = np.column_stack([Z, rng.normal(size=n)])
    y = 1e3 + X[:, 2] + rng.normal(size=top)[a] + rng.normal(size=top * 8)[b] * (Z[:, 1] - 2000.0) + rng.normal(size=n)
    factors = [Factor(Z[:, :1].copy(), a, top, "a"), Factor(Z, b, top * 8, "b")]
    structure = CovarianceStructure((Block(0, 1, "full"), Block(1, 3, "full")))
    return y, X, factors, rng.uniform(0.5, 2.0, n) if weights else None, structure


@pytest.mark.parametrize("weights", [False, True])
def test_one_pass_over_nested_rows(weights, monkeypatch):
    y, X, factors, w, structure = large_nested(weights)
    quick = condition_factors(y, X, factors, w, None, structure)
    monkeypatch.setattr(choose, "QUICK_FROM", 10**9)
    careful = condition_factors(y, X, factors, w, None, structure)
    assert len(quick.layout.stages) == 2
    natural = np.zeros((3, 3))
    natural[structure.positions] = [0.8, 0.5, 0.1, 0.9]
    results = []
    for problem in (quick, careful):
        theta = structure.theta(structure.canonical(np.linalg.solve(problem.z_map, natural)))
        criterion = problem.criterion()
        value, _, _ = criterion.evaluate(theta, 1)
        factor = structure.factor(theta)
        beta = criterion.solution()[0]
        effects = problem.effects(factor, beta)
        covariances = problem.effects_covariance(factor)
        maps = [problem.z_map[:1, :1], problem.z_map[1:, 1:]]
        results.append(
            (
                value + criterion_offset(problem, True),
                problem.beta_base + problem.scale * problem.x_map @ beta,
                [problem.scale * u @ t.T for u, t in zip(effects, maps, strict=True)],
                [t @ C @ t.T for C, t in zip(covariances, maps, strict=True)],
            )
        )
    assert abs(results[0][0] - results[1][0]) < 1e-9 * abs(results[1][0])
    close(results[0][1], results[1][1], 1e-9)
    for i in (2, 3):
        for a, b in zip(results[0][i], results[1][i], strict=True):
            close(a, b, 1e-7)


def test_pilot_of_nested_factors():
    y, X, factors, w, structure = large_nested(top=400)
    problem = condition_factors(y, X, factors, w, None, structure)
    assert problem.pilot(200) is None
    pilot = problem.pilot(100)
    assert pilot is not None
    first = kernels.minimize_newton(pilot, factors_start(problem, problem.criterion()), tolerance=1e-6)
    criterion = problem.criterion()
    found = kernels.minimize_newton(criterion, first[0], tolerance=1e-7)
    cold = kernels.minimize_newton(problem.criterion(), factors_start(problem, problem.criterion()), tolerance=1e-7)
    assert abs(found[3] - cold[3]) < 1e-8 * abs(cold[3])
    assert found[6] <= 5
    close(np.abs(first[0]), np.abs(found[0]), 0.3)


def test_without_fixed_effects():
    y, _, factors, _, _, structure = make("crossed", 9, 1)
    empty = np.empty((60, 0))
    problem = condition_factors(y, empty, factors, None, None, structure)
    theta = np.array([0.5, 0.4])
    value, gradient, _ = problem.criterion().evaluate(theta, 1)
    dense = Dense(problem, factors, empty, y, None, None)
    assert abs(value - dense.at(np.diag(theta**2), True)) < 1e-10 * abs(value)
    assert np.isfinite(gradient).all()


def test_problems_survive_pickling():
    y, X, factors, w, off, structure = make("mixed", 9, 2, True)
    problem = condition_factors(y, X, factors, w, off, structure)
    again = pickle.loads(pickle.dumps(problem))
    theta = np.full(structure.n_parameters, 0.4)
    assert again.criterion().evaluate(theta)[0] == problem.criterion().evaluate(theta)[0]


def test_a_core_beyond_memory_is_refused(monkeypatch):
    from fastlmm_core.engines.crossed import problem as crossed
    from fastlmm_core.support import memory

    y, X, factors, _, _, structure = make("crossed", 9, 1)
    problem = condition_factors(y, X, factors, None, None, structure)
    size = 2 * 8 * int(np.sum(problem.layout.core_sizes**2))
    monkeypatch.setattr(crossed, "available", lambda: 0.0)
    problem.criterion()  # of so little memory nobody asks whether it is there
    monkeypatch.setattr(memory, "ANYWAY", 0)
    monkeypatch.setattr(crossed, "available", lambda: float(size))
    problem.criterion()
    monkeypatch.setattr(crossed, "available", lambda: size - 1.0)
    with pytest.raises(LMMError, match=r"crossed factors: .* need dense matrices.*method='iterative'"):
        problem.criterion()


# block elimination takes what V^-1 leaves of [X y] from differences: larger theta need the engine of nested factors
@pytest.mark.parametrize(
    ("kind", "theta"),
    [
        ("crossed", 1e2), ("crossed", 1e5), ("nested", 1e2), ("nested", 2e5), ("many nested", 1e5),
        ("many nested", 2e8), ("many nested", 1e25),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reml", [True, False])
def test_large_determinants_do_not_overflow(rng, theta, reml, kind):
    # a second factor without variance: groups around one mean, and all else in closed form
    m, n_i = (280, 5) if kind != "many nested" else (1500, 4)
    n = m * n_i
    groups = np.repeat(np.arange(m), n_i)
    other = groups // 10 if kind != "crossed" else rng.permutation(np.arange(n) % 7)
    w = rng.uniform(0.3, 3.0, n)
    y = rng.standard_normal(m)[groups] + rng.standard_normal(n)
    terms = [RandomTerm(None, groups, "a"), RandomTerm(None, other, "b")]
    model = LinearMixedModel(y, None, terms=terms, weights=w)
    total = np.bincount(groups, w)
    means = np.bincount(groups, w * y) / total

    def exact(theta):
        det = 1.0 + total * theta**2
        u = total / det
        r2 = np.sum(w * (y - means[groups]) ** 2) + np.sum(u * (means - np.sum(u * means) / np.sum(u)) ** 2)
        return np.sum(np.log(det)) + (n - reml) * np.log(r2) + (np.log(np.sum(u)) if reml else 0.0)

    value, base = (model.evaluate([t, 0.0], reml).value for t in (theta, 1.0))
    # blocks are eliminated from X'WX, of which the groups leave sum u: its logarithm has lost as many digits
    left = np.sum(total / (1.0 + total * theta**2))
    lost = 2e-16 * total.sum() / left if reml and kind != "many nested" else 0.0
    assert value - base == pytest.approx(exact(theta) - exact(1.0), rel=1e-8, abs=2.0 * lost)
