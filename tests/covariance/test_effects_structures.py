"""Structures of random effects: definitions, derivatives, starts, and the chain rule."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastlmm_core import LMMError
from fastlmm_core.covariance.effects.blocks import EffectsBlocks
from fastlmm_core.covariance.effects.catalogue import of_effects
from fastlmm_core.covariance.parameters import vech_positions
from structures_cases import difference, labels, symmetric

CASES = {
    "us": ("us", {}),
    "diag": ("diag", {}),
    "diag-hom": ("diag", {"hom": True}),
    "cs": ("cs", {}),
    "cs-hom": ("cs", {"hom": True}),
    "ar1": ("ar1", {}),
    "ar1-het": ("ar1", {"hom": False}),
    "toep": ("toep", {}),
    "fa0": ("fa0", {"rank": 2}),
}

over_cases = pytest.mark.parametrize("name", CASES)


def structure_of(name, q=4):
    kind, options = CASES[name]
    return of_effects(kind, q, **options)


def draw(structure, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 0.9, structure.n_parameters)


@over_cases
def test_derivatives(name):
    structure = structure_of(name)
    theta = draw(structure)
    rng = np.random.default_rng(1)
    found = structure.jacobian(theta)
    np.testing.assert_allclose(found, difference(structure.matrix, theta), atol=1e-8)
    slope = symmetric(rng, 4)
    second = structure.second(theta, slope)
    expected = difference(lambda x: (structure.jacobian(x) * slope).sum(axis=(1, 2)), theta)
    np.testing.assert_allclose(second, expected, atol=1e-7)
    weights = symmetric(rng, len(theta))
    np.testing.assert_allclose(np.vdot(structure.second_sum(theta, weights), slope), np.vdot(weights, second))
    L = structure.factor(theta)
    np.testing.assert_allclose(L @ L.T, structure.matrix(theta), rtol=1e-12, atol=1e-13)


@over_cases
def test_natural_parameters(name):
    structure = structure_of(name)
    omega = np.append(draw(structure), 2.5)
    found = structure.natural_jacobian(omega[:-1], 2.5)
    expected = difference(lambda x: structure.natural(x[:-1], float(x[-1])), omega).T
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert len(structure.names(labels(4), "g")) == structure.n_parameters == len(structure.natural(omega[:-1], 2.5))


@pytest.mark.parametrize(
    ("name", "count", "first"),
    # lme4 2: diag and cs have a variance for each effect, ar1 one, unless hom= says otherwise
    [
        ("us", 10, "loading1_v0|g"),
        ("diag", 4, "var_v0|g"),
        ("diag-hom", 1, "var|g"),
        ("cs", 5, "var_v0|g"),
        ("cs-hom", 2, "var|g"),
        ("ar1", 2, "var|g"),
        ("ar1-het", 5, "var_v0|g"),
        ("fa0", 7, "loading1_v0|g"),
    ],
)
def test_counts_and_names(name, count, first):
    structure = structure_of(name)
    assert structure.n_parameters == count
    assert structure.names(labels(4), "g")[0] == first


def test_full_rank_is_unstructured():
    half = np.random.default_rng(0).standard_normal((4, 6))
    G = half @ half.T
    us, full = of_effects("us", 4), of_effects("fa0", 4, rank=4)
    assert us.n_parameters == full.n_parameters
    np.testing.assert_allclose(full.matrix(full.nearest(G)), G, rtol=1e-10, atol=1e-10)


@over_cases
def test_starts_are_members_near_to_moments(name):
    structure = structure_of(name)
    theta = draw(structure, 3)
    G = structure.matrix(theta)
    found = structure.matrix(structure.nearest(G))
    # correlations are drawn to zero as those of few rows are
    np.testing.assert_allclose(np.trace(found), np.trace(G), rtol=0.2)
    s, expected = np.sqrt(np.diag(found)), np.sqrt(np.diag(G))
    np.testing.assert_allclose(found / s / s[:, None], G / expected / expected[:, None], atol=0.5)
    for singular in (np.zeros((4, 4)), np.ones((4, 4)), np.diag([1.0, 0.0, 0.0, 2.0])):
        start = structure.nearest(singular)
        assert np.isfinite(start).all() and np.isfinite(structure.jacobian(start)).all()


def test_chain_rule():
    blocks = EffectsBlocks((of_effects("ar1", 3), of_effects("cs", 2)))
    rng = np.random.default_rng(2)
    basis = rng.standard_normal((5, 5))
    half = rng.standard_normal((5, 5))
    M = half @ half.T + np.eye(5)

    def value(theta):
        return np.linalg.slogdet(M + basis @ blocks.matrix(theta) @ basis.T)[1]

    theta = rng.uniform(0.2, 0.8, blocks.n_parameters)
    W = np.linalg.inv(M + basis @ blocks.matrix(theta) @ basis.T)
    lower, upper = vech_positions(5)
    units = np.zeros((15, 5, 5))
    units[np.arange(15), lower, upper] = units[np.arange(15), upper, lower] = 1.0
    curvature = -np.einsum("ij,ajk,kl,bli->ab", W, units, W, units)
    gradient, hessian = blocks.chain(theta, basis, W, curvature)
    np.testing.assert_allclose(gradient, difference(value, theta), atol=1e-8)
    np.testing.assert_allclose(blocks.chain(theta, basis, W, None)[0], gradient)

    def slope(x):
        V = np.linalg.inv(M + basis @ blocks.matrix(x) @ basis.T)
        return blocks.chain(x, basis, V, None)[0]

    np.testing.assert_allclose(hessian, difference(slope, theta), atol=1e-7)


def test_boundaries():
    effects = labels(3)
    ar1 = of_effects("ar1", 3)
    assert ar1.boundary(np.array([-14.0, 0.5]), effects, "g") == "var|g = 0"
    assert ar1.boundary(np.array([0.0, 1e4]), effects, "g") == "rho|g = 1"
    assert ar1.boundary(np.array([0.0, 0.5]), effects, "g") is None
    cs = of_effects("cs", 3)
    assert cs.boundary(np.array([0.0, -14.0, 0.0, 0.5]), effects, "g") == "var_v1|g = 0"
    fa0 = of_effects("fa0", 3, rank=2)
    assert fa0.boundary(np.array([1.0, 1.0, 1.0, 0.0, 0.0]), effects, "g") == "rank of g = 1"
    assert fa0.boundary(np.array([1.0, 0.0, 1.0, 0.0, 1.0]), effects, "g") == "var_v1|g = 0"
    assert fa0.boundary(np.array([1.0, 0.5, 1.0, 0.5, 1.0]), effects, "g") is None
    blocks = EffectsBlocks((ar1, cs))
    theta = np.array([0.0, 1e4, 0.0, 0.0, 0.0, 0.5])
    assert blocks.boundaries(theta, (*effects, *effects), ("g", "h")) == ("rho|g = 1",)


def test_structures_are_values():
    for name in CASES:
        structure = structure_of(name)
        assert pickle.loads(pickle.dumps(structure)) == structure


def test_refusals():
    with pytest.raises(LMMError, match=r"us\(\) takes no hom=; diag, cs, ar1 do"):
        of_effects("us", 3, hom=True)
    with pytest.raises(LMMError, match="takes a rank from 1 to 3 for its random effects, not 4"):
        of_effects("fa0", 3, rank=4)
    with pytest.raises(LMMError, match=r"cs\(\) takes no rank; fa0 does"):
        of_effects("cs", 3, rank=1)
    with pytest.raises(LMMError, match="there is no structure"):
        of_effects("arh", 3)
