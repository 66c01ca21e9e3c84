"""Random hostile problems with structured residuals, and a search from many starts for the best criterion.

Every structure over visits and over coordinates in turn, with and without random effects, by arms, with weights; few
subjects, many missing visits, standard deviations that differ by four orders of magnitude, correlations near to 1,
heavy tails, negative correlations, extreme units, far origins, and all of these at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

import fastlmm_core as flc

COUNT = 300

VISITS = ("us", "diag", "cs", "csh", "ar1", "ar1h", "ad", "adh", "toep", "toeph", "arma", "id")
COORDINATES = ("car1", "sp_exp", "sp_gau", "matern", "matern52", "ratio", "spher")
KINDS = (
    "plain", "few subjects", "missing visits", "unequal deviations", "near to singular", "heavy tails",
    "negative correlation", "extreme units", "far origins", "weights over decades", "everything",
)  # fmt: skip
CONTAIN = ("us", "cs", "csh", "toep", "toeph")
"""Structures that contain an intercept of each subject, or nearly."""


@dataclass(frozen=True)
class Problem:
    """A data frame and what `lmm` is given."""

    seed: int
    kind: str
    formula: str
    data: pd.DataFrame = field(repr=False)
    options: dict[str, Any]
    reml: bool

    def model(self) -> flc.LinearMixedModel:
        return flc.lmm(self.formula, self.data, **self.options)


def problem(seed: int) -> Problem:
    """One of `COUNT` problems; the same for the same seed."""
    rng = np.random.default_rng([20, seed])
    names = VISITS + COORDINATES
    name, kind = names[seed % len(names)], KINDS[(seed // len(names) + seed) % len(KINDS)]
    every = kind == "everything"

    def hostile(what: str) -> bool:
        return kind == what or (every and rng.random() < 0.5)

    m = int(rng.integers(3, 7))
    few = hostile("few subjects")
    n = int(rng.integers(3 * m, 5 * m)) if few else int(rng.integers(25, 70))
    if name == "us":
        n = max(n, 4 * m)
    i, v = (part.ravel() for part in np.indices((n, m)))
    lag = np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    if hostile("negative correlation"):
        C = np.where(lag == 0, 1.0, -0.7 / (m - 1)) if rng.random() < 0.5 else (-0.6) ** lag.astype(float)
    elif hostile("near to singular"):
        C = (1.0 - 10.0 ** rng.uniform(-5.0, -2.0)) ** lag
    else:
        C = rng.uniform(0.1, 0.8) ** lag
    sd = 10.0 ** rng.uniform(-2.0, 2.0, m) if hostile("unequal deviations") else rng.uniform(0.5, 2.0, m)
    noise = rng.standard_t(2.0, (n, m)) if hostile("heavy tails") else rng.standard_normal((n, m))
    e = (noise @ np.linalg.cholesky(C + 1e-12 * np.eye(m)).T * sd).ravel()
    x, site, arm = rng.standard_normal(n * m), i % max(4, n // 6), rng.integers(0, 2, n)[i]
    size = np.sqrt(np.mean(e**2))
    between = rng.choice([0.0, 0.3, 3.0]) * size
    y = 1.0 + x * size + between * rng.standard_normal(site.max() + 1)[site] + e
    t = v * 1.0 + (rng.uniform(0.0, 0.5, n * m) if rng.random() < 0.5 else 0.0)
    weights = 10.0 ** rng.uniform(-3.0, 3.0, n * m) if hostile("weights over decades") else rng.uniform(0.5, 2.0, n * m)
    if hostile("far origins"):
        y, x = y + 1e6 * size, x + 1e4
    if hostile("extreme units"):
        y, x, t = (
            y * 10.0 ** rng.uniform(-6.0, 6.0),
            x * 10.0 ** rng.uniform(-6.0, 6.0),
            t * 10.0 ** rng.uniform(-4.0, 4.0),
        )
    data = pd.DataFrame({"y": y, "x": x, "id": i, "v": v, "t": t, "site": site, "arm": arm, "w": weights})
    lost = 0.4 if hostile("missing visits") and not few else 0.15
    seen = rng.random(n * m) >= (0.1 if name == "us" else lost) * (v > 0)
    data = data[seen].sample(frac=1.0, random_state=seed).reset_index(drop=True)
    by = ", by=arm" if rng.random() < 0.2 and not few and name != "us" else ""
    if name in VISITS:
        residual = f"{name}(v | id{by})"
    else:
        nugget = ", nugget=True" if rng.random() < 0.3 else ""
        residual = f"{name}(t | id{by}{nugget})"
    parts = ["", " + (1 | site)"]
    if name not in CONTAIN and name in VISITS:
        parts += [" + (1 | id)", " + (x | id)"]
    parts += [" + (x | site)"]
    options: dict[str, Any] = {"residual": residual}
    if kind == "weights over decades" or rng.random() < 0.2:
        options["weights"] = "w"
    formula = f"y ~ x + arm{parts[int(rng.integers(len(parts)))]}"
    return Problem(seed, kind, formula, data, options, seed % 3 != 0)


def best_criterion(one: Problem, starts: int, fit: flc.LMMResult) -> float:
    """The least criterion that quasi-Newton searches find, from the start of the fit, its optimum and elsewhere."""
    model = one.model()
    engine = model.problem.criterion()
    engine.reml = one.reml
    rng = np.random.default_rng(one.seed)
    offset = fit.criterion - fit.optimum.value

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        found = engine.evaluate(np.ascontiguousarray(x), 1)
        if not np.isfinite(found[0]) or found[1] is None or not np.isfinite(found[1]).all():
            return 1e10, np.zeros(len(x))
        return float(found[0]), np.array(found[1])

    first = model.problem.start(engine)
    if not len(first):
        return float(engine.evaluate(first, 0)[0]) + offset
    places = [first, fit.optimum.theta]
    places += [first + rng.normal(size=len(first)) for _ in range(starts)]
    places += [fit.optimum.theta + 0.3 * rng.normal(size=len(first)) for _ in range(starts)]
    best = np.inf
    for place in places:
        with np.errstate(all="ignore"):
            found = optimize.minimize(
                value, place, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-15}
            )
        best = min(best, float(found.fun))
    return best + offset
