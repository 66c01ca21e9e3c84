"""Logarithms of tails against mpmath's incomplete functions with 40 digits."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core.support.distributions import f_tail
from fastlmm_core.support.log_tails import log10_f_tail

mpmath = pytest.importorskip("mpmath")


def exact(value, above, below):
    with mpmath.workdps(40):
        value, a = mpmath.mpf(value), mpmath.mpf(above) / 2
        if np.isinf(below):
            return float(mpmath.log10(mpmath.gammainc(a, a * value, mpmath.inf, regularized=True)))
        b = mpmath.mpf(below) / 2
        x = b / (b + a * value)
        # by the series of DLMF 8.17.8, all of whose terms are positive: quadrature would miss so small a tail
        total = term = mpmath.mpf(1)
        k = 0
        while term > total * mpmath.mpf(10) ** -25:
            term *= (a + b + k) / (b + 1 + k) * x
            total += term
            k += 1
        log = b * mpmath.log(x) + a * mpmath.log(1 - x) - mpmath.log(b) + mpmath.log(total)
        return float((log - mpmath.log(mpmath.beta(a, b))) / mpmath.log(10))


@pytest.mark.parametrize("below", [3.0, 57.3, 400.0, np.inf])
@pytest.mark.parametrize("above", [1.0, 2.0, 7.0, 40.0])
def test_against_mpmath(above, below):
    for value in (0.7, 30.0, 2e3, 1e5, 1e12):
        found = log10_f_tail(value, above, below)
        assert found.shape == ()
        assert abs(found - exact(value, above, below)) <= 1e-11 * max(1.0, abs(found)), value


def test_shapes_and_what_is_no_number():
    value = np.array([[1.0, np.nan], [np.inf, 5000.0]])
    found = log10_f_tail(value, 1.0, [[9.0, 9.0], [9.0, np.inf]])
    assert found.shape == (2, 2)
    assert np.isnan(found[0, 1]) and found[1, 0] == -np.inf and found[1, 1] < -1000.0
    np.testing.assert_allclose(10.0 ** found[0, 0], f_tail(1.0, 1.0, 9.0), rtol=1e-12)
