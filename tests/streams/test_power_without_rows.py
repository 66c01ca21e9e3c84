"""Power of models whose rows are not held: draws of sums tell what draws of responses tell."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from streamed import cut, simulated

MONTE_CARLO = 4.0
"""Standard errors of the difference of two shares."""


def study():
    return simulated(300, m=25).assign(room=lambda d: d["g"], school=lambda d: d["g"] // 15)


@pytest.mark.parametrize("formula", ["y ~ x + z + (x | g)", "y ~ z + (1 | school/room)"])
@pytest.mark.parametrize(("effect", "method"), [(0.0, "wald"), (0.15, "wald"), (0.0, "lrt"), (0.15, "lrt")])
def test_the_power_of_memory(formula, effect, method):
    data, n = study(), 300
    one = flc.power(flc.lmm(formula, data).fit(), "z", effect=effect, n_sim=10 * n, seed=1, method=method)
    fit = flc.lmm(formula, flc.scan(cut(data, 100))).fit()
    other = flc.power(fit, "z", effect=effect, n_sim=n, seed=2, method=method)
    spread = np.sqrt(one.power * (1.0 - one.power) / n)
    assert other.n_converged == n
    assert abs(other.power - one.power) < MONTE_CARLO * spread
    assert other.effect == pytest.approx(effect)
    assert abs(other.bias[0]) < MONTE_CARLO * fit.bse["z"] / np.sqrt(n)


def test_parts_of_a_run_sides_and_contrasts():
    fit = flc.lmm("y ~ x + z + (1 | g)", flc.scan(study())).fit()
    whole = flc.power(fit, "z", effect=0.1, n_sim=12, seed=3)
    parts = [flc.power(fit, "z", effect=0.1, n_sim=6, seed=3, first=first) for first in (0, 6)]
    np.testing.assert_array_equal(parts[0].join(parts[1]).pvalues, whole.pvalues)
    less = flc.power(fit, "z", effect=0.1, n_sim=12, seed=3, alternative="greater")
    np.testing.assert_allclose(np.minimum(2.0 * less.pvalues, 2.0 - 2.0 * less.pvalues), whole.pvalues, rtol=1e-12)
    both = flc.power(fit, [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], n_sim=4, seed=3, ddf="kenward-roger")
    assert both.pvalues.shape == (4,) and both.power == 1.0


def test_what_is_refused():
    fit = flc.lmm("y ~ x + z + (x | g)", flc.scan(study())).fit()
    with pytest.raises(flc.LMMError, match=r"tests of coefficients, by method='wald' or 'lrt'; for tests of variances"):
        flc.power(fit, "sd_x|g", n_sim=5)
    with pytest.raises(flc.LMMError, match=r"who leaves a study cannot be given.*not held"):
        flc.power(fit, "z", n_sim=5, dropout=flc.Dropout(0.1))
    crossed = flc.lmm("y ~ x + (1 | g) + (1 | arm)", flc.scan(study())).fit()
    with pytest.raises(flc.LMMError, match=r"crossed factors, or of groups in buckets, cannot be given.*not held"):
        flc.power(crossed, "x", n_sim=5)
