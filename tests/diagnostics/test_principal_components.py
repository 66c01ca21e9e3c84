"""Principal components of the random effects against the eigenvalues of G, and their rank against known ones."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc

# Eigenvalues of correlation matrices of some effects, whose elements are of size one.
EXACT = 1e-12


def study(rank: int, seed: int = 2, units=(1.0, 1.0, 1.0)):
    """Thirty groups whose three effects vary in `rank` directions; the noise is made orthogonal to them."""
    rng = np.random.default_rng(seed)
    m, x = 30, np.arange(7.0) - 3.0
    Z = np.column_stack([np.ones(7), x, x**2])
    e = rng.standard_normal((m, 7))
    Q, _ = np.linalg.qr(Z)
    e -= (e @ Q) @ Q.T
    directions = np.array([[1.0, 0.3, 0.6], [-0.2, 1.0, 0.8], [0.5, -0.4, 1.0]])[:rank]
    b = 2.0 * rng.standard_normal((m, rank)) @ directions
    columns = np.tile(Z, (m, 1)) * units
    y = 3.0 + (b @ Z.T + e).ravel()
    return flc.LinearMixedModel(y, np.ones((7 * m, 1)), columns, np.repeat(np.arange(m), 7)).fit()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("correlation", [True, False])
def test_they_are_the_eigenvectors(rank, correlation):
    fit = study(rank)
    (found,) = fit.principal_components(correlation).values()
    matrix = fit.random_effects_corr["group"] if correlation else fit.G["group"]
    values = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(found.variance, values, rtol=EXACT, atol=EXACT * values[0])
    assert found.rank == rank == fit.random_effects_rank["group"] == np.count_nonzero(found.variance)
    assert found.singular is (rank < 3)
    np.testing.assert_allclose(found.loadings.T @ found.loadings, np.eye(3), atol=EXACT)
    built = found.loadings @ np.diag(found.variance) @ found.loadings.T
    np.testing.assert_allclose(built, matrix, atol=EXACT * values[0])
    assert (found.loadings[np.abs(found.loadings).argmax(axis=0), range(3)] > 0.0).all()
    np.testing.assert_allclose(found.share, values / values.sum(), atol=EXACT)
    assert f"rank {rank} of 3" in repr(found) and f"rank {rank} of 3" in found._repr_html_()
    frame = found.to_frame()
    assert list(frame)[:4] == ["component", "variance", "share", "cumulative"]
    np.testing.assert_allclose(frame["loading_z1"], found.loadings[1])


def test_units_do_not_matter():
    one = study(2).principal_components()["group"]
    other = study(2, units=(1.0, 1e6, 1e-6)).principal_components()["group"]
    np.testing.assert_allclose(other.share, one.share, atol=1e-7)  # two fits, each to its certificate
    assert other.rank == one.rank == 2


def test_effects_without_variance():
    # groups with equal means and equal slopes of x: nothing varies
    rng = np.random.default_rng(0)
    e = rng.standard_normal((20, 6))
    Q = np.linalg.qr(np.column_stack([np.ones(6), np.arange(6.0)]))[0]
    e -= (e @ Q) @ Q.T
    data = {
        "y": e.ravel() + np.tile(np.arange(6.0), 20),
        "x": np.tile(np.arange(6.0), 20),
        "g": np.repeat(np.arange(20), 6),
    }
    fit = flc.lmm("y ~ x + (x | g)", data).fit()
    found = fit.principal_components()["g"]
    assert found.rank == 0 and not found.variance.any() and not found.share.any()
    assert "g  rank 0 of 2:  0 0" in str(fit.summary())
    assert fit.singular_components == ("sd of Intercept | g is 0", "sd of x | g is 0")


def test_terms_of_one_factor_and_several_factors():
    rng = np.random.default_rng(1)
    n = 600
    g, h = rng.integers(0, 20, n), rng.integers(0, 15, n)
    x, z = rng.standard_normal(n), rng.standard_normal(n)
    y = (
        rng.standard_normal(20)[g]
        + rng.standard_normal(20)[g] * x
        + rng.standard_normal(15)[h]
        + rng.standard_normal(n)
    )
    both = flc.lmm("y ~ x + (x | g) + (0 + z | g) + (1 | h)", {"y": y, "x": x, "z": z, "g": g, "h": h}).fit()
    found = both.principal_components(False)
    assert set(found) == {"g", "h"}
    blocks = np.zeros((3, 3))
    blocks[:2, :2], blocks[2:, 2:] = both.G["g"], both.G["g.1"]
    np.testing.assert_allclose(found["g"].variance, np.linalg.eigvalsh(blocks)[::-1], atol=1e-12)
    assert found["g"].rank == sum(both.random_effects_rank[term] for term in ("g", "g.1"))
    assert found["h"].variance == pytest.approx(both.G["h"][0, 0])


def test_pairs_and_ranks_are_told_apart():
    """An effect that repeats another is named as such, a rank only where that does not explain it."""
    assert study(1).singular_components == tuple(
        f"correlation of {a} and {b} | group is {sign}1" for a, b, sign in _signs(study(1))
    )
    assert study(2).singular_components == ("covariance of z0, z1, z2 | group has rank 2 of 3",)
    assert study(3).singular_components == ()


def _signs(fit):
    corr = fit.random_effects_corr["group"]
    return [(f"z{i}", f"z{j}", "+" if corr[i, j] > 0 else "-") for i in range(3) for j in range(i + 1, 3)]
