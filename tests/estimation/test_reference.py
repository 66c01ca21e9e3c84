"""Fits against lme4: every model with one grouping factor, REML and ML, from formulas and from arrays."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import oracle

# What a fit may differ by, and why.
TOLERANCE = {
    # Both sides are optima, where an error of 2e-7 in theta moves the criterion by 1e-13; what is left is rounding.
    "criterion": 1e-10,
    # The contract: never above lme4's by more than this, by whatever optimiser.
    "criterion_any_method": 1e-8,
    # GLS with 2e-7 in theta; relative to the standard error, because a coefficient may happen to be near zero.
    "beta": 1e-6,
    # First order in the 2e-7 of the recorded theta.
    "se": 1e-6,
    # Second moments: twice the relative error of theta, which is least certain where the criterion is flat (oxboys).
    "G": 1e-5,
    "sigma": 1e-6,
    "theta": 1e-5,
    # BLUPs and fitted values follow theta; relative to the standard deviation of the effect or of the residuals.
    "ranef": 1e-5,
    "condvar": 1e-5,
    "fitted": 1e-6,
}

CASES = [
    (name, reml, path) for name in oracle.SINGLE_FACTOR for reml in (True, False) for path in ("formula", "arrays")
]
IDS = [f"{name}-{'reml' if reml else 'ml'}-{path}" for name, reml, path in CASES]


@pytest.fixture(params=CASES, ids=IDS)
def case(request, fitted_reference):
    name, reml, path = request.param
    ref = oracle.reference(name)
    return ref, ref.blocks[reml], reml, path, fitted_reference(name, reml, path)


def r_names(names: list[str]) -> list[str]:
    """R's coefficient names from those of formulaic."""
    return [n.replace("[T.", "").replace("]", "").replace("Intercept", "(Intercept)") for n in names]


def in_reference_order(ref, path, x) -> np.ndarray:
    """Coefficients in the order of the reference: by name if there are names."""
    if path == "arrays":
        return np.asarray(x, dtype=float)
    return np.array([dict(zip(r_names(oracle.names(x)), oracle.values(x), strict=True))[c] for c in ref.coef_names])


def close(actual, desired, tolerance, scale) -> None:
    """|actual - desired| <= tolerance * scale, elementwise."""
    actual, desired = np.asarray(actual, dtype=float), np.asarray(desired, dtype=float)
    assert actual.shape == desired.shape
    excess = np.abs(actual - desired) / np.where(np.asarray(scale) > 0, scale, 1.0)
    assert np.max(excess, initial=0.0) <= tolerance


def effect_scale(block) -> np.ndarray:
    """Standard deviation of each effect; sigma where the variance is zero."""
    sd = np.sqrt(np.diag(block.G))
    return np.where(sd > 0, sd, block.sigma)


def test_criterion(case):
    _, block, _, _, result = case
    assert float(result.criterion) == pytest.approx(block.criterion, rel=TOLERANCE["criterion"])
    assert float(result.llf) == pytest.approx(block.loglik, rel=TOLERANCE["criterion"])
    assert float(result.criterion) == pytest.approx(-2.0 * float(result.llf), rel=1e-14)


def test_information_criteria(case):
    ref, block, _, _, result = case
    assert float(result.aic) == pytest.approx(block.aic, rel=TOLERANCE["criterion"])
    assert float(result.bic) == pytest.approx(block.bic, rel=TOLERANCE["criterion"])
    assert result.nobs == len(ref.y)
    assert list(result.n_groups.values()) == [len(ref.levels)]


def test_status(case):
    _, block, _, _, result = case
    assert bool(result.converged) is True
    assert bool(result.singular) is block.singular
    assert isinstance(result.message, str)
    assert result.message
    assert 1 <= result.n_evaluations <= 100  # second-order steps: tens, not hundreds
    assert float(result.gradient_norm) < 1e-5


def test_certificate_by_the_oracle(case):
    # Not lme4's word but the derivative of the dense criterion, by complex step, at the theta of the fit.
    ref, block, reml, _, result = case
    theta = np.asarray(result.theta, dtype=float)
    args = (*ref.arrays, reml, None, None, ref.structure)
    assert oracle.criterion_theta(theta, *args) == pytest.approx(float(result.criterion), rel=1e-11)
    g = oracle.complex_step_gradient(theta, *args)
    # by the relative change of theta, so that the units of Z do not matter; 1e-5 leaves the criterion within 1e-10
    q = len(ref.effect_names)
    rows = np.sqrt(np.diag(block.Ghat))
    scale = rows if ref.structure == "diagonal" else np.array([rows[i] for j in range(q) for i in range(j, q)])
    assert np.max(np.abs(g * scale)) < 1e-5


def test_fixed_effects(case):
    ref, block, _, path, result = case
    close(in_reference_order(ref, path, result.params), block.beta, TOLERANCE["beta"], block.se)
    close(in_reference_order(ref, path, result.bse), block.se, TOLERANCE["se"], block.se)
    t = block.beta / block.se
    # the error of beta is measured in standard errors, which is the unit of t; that of the standard error adds t times
    close(in_reference_order(ref, path, result.tvalues), t, TOLERANCE["beta"], 1.0 + np.abs(t))


def test_covariance_of_fixed_effects(case):
    ref, block, _, path, result = case
    V = result.cov_params()
    if path == "formula":
        labels = r_names(list(V.columns))
        assert r_names(list(V.index)) == labels
        order = [labels.index(c) for c in ref.coef_names]
        V = V.to_numpy()[np.ix_(order, order)]
    close(V, block.vcov, 2 * TOLERANCE["se"], np.outer(block.se, block.se))


def test_variance_components(case):
    ref, block, _, _, result = case
    G = oracle.covariance_blocks(result)
    sd = effect_scale(block)
    close(G, block.G, TOLERANCE["G"], np.outer(sd, sd))
    assert float(result.sigma2) == pytest.approx(block.sigma**2, rel=2 * TOLERANCE["sigma"])
    if ref.structure == "diagonal":
        np.testing.assert_array_equal(G, np.diag(np.diag(G)))


def test_theta(case):
    _, block, _, _, result = case
    close(result.theta, block.theta, TOLERANCE["theta"], max(1.0, float(np.max(block.theta))))


def test_blups(case):
    ref, block, _, _, result = case
    labels, b = oracle.random_effects(result)
    assert sorted(labels) == [str(level) for level in ref.levels]
    order = [labels.index(str(level)) for level in ref.levels]
    close(b[order], block.ranef, TOLERANCE["ranef"], effect_scale(block))
    assert b.shape == (len(ref.levels), len(ref.effect_names))


def test_conditional_covariances(case):
    ref, block, _, _, result = case
    C = np.asarray(result.random_effects_covariance(), dtype=float)
    q = len(ref.effect_names)
    assert C.shape == (len(ref.levels), q, q)
    labels = [str(g) for g in result.group_labels]
    order = [labels.index(str(ref.levels[i])) for i in block.condvar_rows]
    sd = effect_scale(block)
    close(C[order], block.condvar, TOLERANCE["condvar"], np.outer(sd, sd))


def test_fitted_and_residuals(case):
    ref, block, reml, _, result = case
    mu, e = oracle.values(result.fittedvalues), oracle.values(result.resid)
    k = len(block.fitted)
    close(mu[:k], block.fitted, TOLERANCE["fitted"], block.sigma)
    close(e[:k], block.resid, TOLERANCE["fitted"], block.sigma)
    np.testing.assert_allclose(mu + e, ref.y, rtol=1e-13)
    # beyond the rows that were recorded, and for the other kinds, the oracle at the recorded theta
    for kind, unit in (("conditional", block.sigma), ("marginal", block.sigma), ("pearson", 1.0), ("whitened", 1.0)):
        desired = oracle.residuals(*ref.arrays, block.Ghat, reml, kind)
        close(oracle.values(result.residuals(kind=kind)), desired, 5 * TOLERANCE["fitted"], unit)


def test_prediction_of_the_data(case):
    ref, block, _, path, result = case
    if path == "arrays":
        pytest.skip("prediction from a frame needs a formula")
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ref.columns)
    inside = oracle.values(result.predict(frame, effects="all"))
    close(inside, oracle.values(result.fittedvalues), 1e-10, block.sigma)
    population = oracle.values(result.predict(frame, effects="population"))
    close(population, ref.X @ in_reference_order(ref, path, result.params), 1e-10, block.sigma)
    # rows on their own are predicted as they are among the others: factor levels come from the fit
    few = oracle.values(result.predict(frame.iloc[[3]].reset_index(drop=True), effects="all"))
    close(few, inside[[3]], 1e-10, block.sigma)


def test_marginal_covariance(case):
    ref, block, _, _, result = case
    labels = list(result.group_labels)
    for i in (0, len(labels) - 1):
        desired = oracle.marginal_covariance(str(labels[i]), ref.Z, ref.groups, block.G, block.sigma**2)
        V = np.asarray(result.marginal_covariance(labels[i]), dtype=float)
        close(V, desired, TOLERANCE["G"], np.sqrt(np.outer(np.diag(desired), np.diag(desired))))


def test_icc_of_a_random_intercept(case):
    ref, block, _, _, result = case
    if ref.effect_names != ["(Intercept)"]:
        pytest.skip("one number only for a random intercept")
    icc = result.icc()
    icc = next(iter(icc.values())) if isinstance(icc, dict) else icc
    assert float(icc) == pytest.approx(block.G[0, 0] / (block.G[0, 0] + block.sigma**2), rel=TOLERANCE["G"], abs=1e-12)


@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "Nelder-Mead", "trust-exact"])
@pytest.mark.parametrize("name", ["dyestuff", "sleepstudy_slope", "sleepstudy_uncorrelated"])
def test_other_optimisers_reach_the_same_optimum(name, method):
    ref = oracle.reference(name)
    model = flc.LinearMixedModel(*ref.arrays, structure=ref.structure)
    for reml in (True, False):
        result = model.fit(reml=reml, method=method)
        assert float(result.criterion) == pytest.approx(
            ref.blocks[reml].criterion, rel=TOLERANCE["criterion_any_method"]
        )


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("method", ["newton", "L-BFGS-B"])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 100.0])
def test_start_does_not_matter(scale, method, reml):
    # A start of zero is a stationary point of every data set; the search has to leave it.
    ref = oracle.reference("sleepstudy_slope")
    start = scale * ref.blocks[reml].theta
    result = flc.LinearMixedModel(*ref.arrays).fit(reml=reml, method=method, start=start)
    assert float(result.criterion) == pytest.approx(ref.blocks[reml].criterion, rel=TOLERANCE["criterion"])
    assert result.converged


def test_frames_of_every_library_give_the_same_fit(fitted_reference):
    ref = oracle.reference("sleepstudy_slope")
    expected = fitted_reference("sleepstudy_slope", True, "arrays")
    frames = {"dict": ref.columns}
    for library in ("pandas", "polars", "pyarrow"):
        module = pytest.importorskip(library)
        frames[library] = module.table(ref.columns) if library == "pyarrow" else module.DataFrame(ref.columns)
    for frame in frames.values():
        result = flc.lmm(ref.formula, frame).fit()
        np.testing.assert_allclose(oracle.values(result.params), expected.params, rtol=1e-10)
        assert float(result.criterion) == pytest.approx(float(expected.criterion), rel=1e-12)
        labels, b = oracle.random_effects(result)
        order = [labels.index(str(g)) for g in expected.group_labels]
        np.testing.assert_allclose(b[order], expected.random_effects, rtol=1e-7, atol=1e-7)
