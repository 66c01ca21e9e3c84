"""Every structure of residuals with all that can stand beside it: criterion and derivatives against dense algebra.

The full product of

- all structures over visits, over coordinates (with and without a nugget), of factors and of several responses, and all
  variance functions;
- no random effects, an intercept, an intercept and a slope of sites that hold several subjects;
- one set of parameters, one by arm (`by=`);
- without weights, with weights; complete visits, visits missing at random; REML, ML.

The gradient is compared along a random direction with differences of the dense criterion, the Hessian times that
direction with differences of the gradient: an error of any element shows.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense
from fastlmm_core.covariance.residual.catalogue import coordinate_names, position_names

VALUE = 1e-11  # relative, rounding of sums over a few dozen rows
GRADIENT = 1e-8  # relative to the criterion and its curvature: fourth-order differences of steps of 1e-4
HESSIAN = 1e-7  # the same, of analytic gradients

STRUCTURES = {
    **{name: f"{name}(visit | id%s)" for name in position_names()},
    **{name: f"{name}(time | id%s)" for name in coordinate_names()},
    **{f"{name} nugget": f"{name}(time | id%s, nugget=True)" for name in coordinate_names() if name != "sp_power"},
    "plane": "sp_exp(time, height | id%s)",
    "fa": "fa(visit | id%s, q=1)",
    **{f"us@{name}": f"us@{name}(response, visit | id%s)" for name in ("cs", "ar1", "toep")},
    "power": ("ar1(visit | id%s)", "power(size)"),
    "exp": ("cs(visit | id%s)", "exp(size, by=arm)"),
    "constpower": ("car1(time | id%s)", "constpower(size)"),
    "constprop": ("id(visit | id%s)", "constprop(size)"),
    "~": ("ar1(visit | id%s)", "~ arm + size"),
}
EFFECTS = ("", " + (1 | site)", " + (time | site)")


def problem(rng: np.random.Generator, missing: bool) -> pd.DataFrame:
    """Two responses of 12 subjects in four sites at up to four visits."""
    subject, visit, response = (part.ravel() for part in np.indices((12, 4, 2)))
    n = len(subject)
    frame = pd.DataFrame({"id": subject, "site": subject // 3, "visit": visit, "response": response})
    frame["arm"] = np.where(subject % 2, "A", "B")
    frame["time"] = visit + rng.uniform(0.0, 0.5, (12, 4, 1)).repeat(2, axis=2).ravel()
    frame["height"], frame["size"] = rng.normal(size=n), rng.uniform(0.5, 2.0, n)
    frame["w"] = rng.uniform(0.5, 2.0, n)
    frame["y"] = rng.normal(size=12)[subject] + 0.3 * visit + (1.0 + 0.2 * visit) * rng.normal(size=n)
    keep = (rng.random(n) < 0.8) | (subject < 4) if missing else np.ones(n, dtype=bool)
    return frame[keep].sample(frac=1.0, random_state=int(rng.integers(1000))).reset_index(drop=True)


def compare(model: flc.LinearMixedModel, reml: bool, rng: np.random.Generator, far: float) -> None:
    k = model.structure.n_parameters
    phi = model.problem.residual.n_parameters
    x = np.concatenate([rng.normal(0.6, 0.3, k), 0.2 * rng.normal(size=phi) + far])

    def value(x: np.ndarray) -> float:
        factor = model.structure.factor(x[:k])
        return dense.criterion(model, x[k:], reml, factor @ factor.T if k else None)

    found = model.evaluate(x, reml=reml, order=2)
    assert found.value == pytest.approx(value(x), rel=VALUE)
    if not len(x):
        return
    size = np.sqrt(np.abs(np.diag(found.hessian))) + 1.0
    along = rng.normal(size=len(x)) / size
    h = 1e-4
    points = [x + step * h * along for step in (-2.0, -1.0, 1.0, 2.0)]
    weights = np.array([1.0, -8.0, 8.0, -1.0]) / (12.0 * h)
    slope = weights @ [value(point) for point in points]
    assert abs(found.gradient @ along - slope) < GRADIENT * abs(found.value) * np.linalg.norm(along * size)
    change = weights @ np.array([model.evaluate(point, reml, 1).gradient for point in points])
    assert np.abs((found.hessian @ along - change) / size).max() < HESSIAN * np.linalg.norm(along * size)


@pytest.mark.parametrize("effects", EFFECTS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_value_and_derivatives(name, effects, rng):
    text = STRUCTURES[name]
    residual, variance = text if isinstance(text, tuple) else (text, None)
    for by, weights, missing in itertools.product(("", ", by=arm"), (None, "w"), (False, True)):
        frame = problem(rng, missing)
        if not name.startswith("us@"):
            frame = frame[frame.response == 0]
        options = {"residual": residual % by, "variance": variance, "weights": weights}
        model = flc.lmm(f"y ~ arm + time{effects}", frame, **options)
        for reml in (True, False):
            # the second derivative of spher jumps where a distance is its range, which is larger than all here
            compare(model, reml, rng, 3.0 if name.startswith("spher") else 0.0)
