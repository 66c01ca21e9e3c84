"""REML against the closed form of the balanced one-way layout, on the data that NIST made to be hard."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import nist
import oracle

# Sums of squares that NIST certifies: between (8 degrees of freedom) and within (9 (m - 1) degrees of freedom).
CERTIFIED = {21: ("1.68", "1.80"), 201: ("16.08", "18.0"), 2001: ("160.08", "180.0")}

# Correct digits that REML must reach against the mean squares of the floats as stored. The same for all nine sets: the
# leading digits are constant, so that taking off a constant is exact and what remains is as well scaled as in SmLs01.
# Fits reach 13.5 or more; what is left is the rounding of sums over up to 18,009 rows.
DIGITS_SIGMA2 = 12.0
DIGITS_TAU2 = 12.0


@pytest.mark.parametrize("name", nist.NAMES)
def test_generated_data_have_the_certified_sums_of_squares(name):
    data = nist.load(name)
    between, within = CERTIFIED[data.m]
    assert data.certified_msb * 8 == Fraction(between)
    assert data.certified_msw * 9 * (data.m - 1) == Fraction(within)
    assert len(data.y) == len(data.groups) == 9 * data.m


@pytest.mark.parametrize("name", nist.NAMES)
def test_stored_data_agree_with_the_certified_values_as_far_as_they_can(name):
    # Each value is off by at most half a unit in the last place. Values deviate from their means by 0.1, so a mean
    # square of deviations is off by at most 2 * ulp / 0.1 relative, and a little more for the mean square between.
    data = nist.load(name)
    bound = 4 * np.spacing(np.max(data.y)) / 0.1
    assert abs(data.msw / data.certified_msw - 1) <= bound
    assert abs(data.msb / data.certified_msb - 1) <= bound
    if data.digits == 13:  # and the stored data are not the certified data
        assert abs(data.msw / data.certified_msw - 1) > 1e-5


def test_first_values_of_a_set():
    y = nist.load("SmLs01").y.reshape(9, 21)
    np.testing.assert_array_equal(y[0, :5], [1.4, 1.3, 1.5, 1.3, 1.5])
    np.testing.assert_array_equal(y[:, 0], [1.4, 1.3, 1.5, 1.3, 1.5, 1.3, 1.5, 1.3, 1.5])
    assert nist.load("SmLs09").y[0] == 1000000000000.4


def test_log_relative_error():
    assert nist.log_relative_error(1.001, Fraction(1)) == pytest.approx(3.0)
    assert nist.log_relative_error(1.0, 1.0) == 15.0


def test_closed_form_is_the_optimum_of_the_oracle():
    data = nist.load("SmLs01")
    best = oracle.fit(data.y, np.ones((len(data.y), 1)), np.ones((len(data.y), 1)), data.groups)
    assert nist.log_relative_error(best.sigma2, data.sigma2) > 10
    assert nist.log_relative_error(best.G[0, 0], data.tau2) > 9


@pytest.mark.parametrize("path", ["arrays", "formula"])
@pytest.mark.parametrize("name", nist.NAMES)
def test_reml(name, path, record_property):
    import fastlmm_core as flc

    data = nist.load(name)
    if path == "arrays":
        model = flc.LinearMixedModel(data.y, None, None, data.groups)
    else:
        model = flc.lmm("y ~ 1 + (1 | treatment)", {"y": data.y, "treatment": data.groups.astype(str)})
    result = model.fit(reml=True)
    achieved = {
        "sigma2": nist.log_relative_error(result.sigma2, data.sigma2),
        "tau2": nist.log_relative_error(oracle.covariance_blocks(result)[0, 0], data.tau2),
    }
    for key, digits in achieved.items():
        record_property(f"{name}_{path}_{key}_digits", round(digits, 1))
    print(name, path, {key: round(digits, 1) for key, digits in achieved.items()})
    assert result.converged
    assert achieved["sigma2"] >= DIGITS_SIGMA2
    assert achieved["tau2"] >= DIGITS_TAU2
    # the grand mean and its standard error sqrt(MSB / n)
    mean = sum(Fraction(v) for v in data.y) / len(data.y)
    assert abs(Fraction(float(oracle.values(result.params)[0])) - mean) <= 2 * np.spacing(data.y[0])
    assert (
        nist.log_relative_error(float(oracle.values(result.bse)[0]), float(data.msb / len(data.y)) ** 0.5)
        >= DIGITS_TAU2
    )
