"""Long series: continuous-time autoregression beside a random intercept and slope, and one series alone.

Rows stand at irregular times; nothing of the size of a subject squared is formed.  Beside them many short series,
slopes of 1,000 subjects over eight visits, with autoregressive residuals and without.  Before anything is timed, a
fit of few rows is held against the criterion and gradient of the engine that forms each subject's covariance matrix
in full.
"""

from __future__ import annotations

import sys

import _harness

# isort: split
import numpy as np

from _harness import Case

SUBJECTS = 10


def table(rows: int, seed: int = 7) -> dict[str, np.ndarray]:
    """y, x, irregular times t and subjects g."""
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.uniform(0.5, 1.5, rows))
    noise, e = rng.standard_normal(rows), np.empty(rows)
    rho = 0.7 ** np.diff(t, prepend=t[0] - 1e6)
    last = 0.0
    for k, (r, z) in enumerate(zip(rho.tolist(), noise.tolist(), strict=True)):
        last = r * last + np.sqrt(1.0 - r * r) * z
        e[k] = last
    g = np.arange(rows) * SUBJECTS // rows
    b = rng.standard_normal((SUBJECTS, 2)) * [1.0, 0.3]
    x = rng.standard_normal(rows)
    return {"y": 1.0 + 0.5 * x + b[g, 0] + b[g, 1] * x + e, "x": x, "t": t, "g": g}


def model(data: dict[str, np.ndarray], effects: bool = True) -> object:
    """The model of the formula, with one subject for all rows where there are no effects."""
    import fastlmm_core as flc

    if not effects:
        return flc.lmm("y ~ x", {**data, "g": np.zeros_like(data["g"])}, residual="car1(t | g)")
    return flc.lmm("y ~ x + (x | g)", data, residual="car1(t | g)")


def slopes(subjects: int, visits: int = 8) -> list[object]:
    """Slopes over own times without structure, with ar1 residuals and with car1 residuals."""
    import fastlmm_core as flc

    rng = np.random.default_rng(11)
    g, visit = np.repeat(np.arange(subjects), visits), np.tile(np.arange(visits), subjects)
    t = visit + rng.uniform(-0.3, 0.3, len(visit))
    e = rng.standard_normal((subjects, visits))
    for k in range(1, visits):
        e[:, k] = 0.5 * e[:, k - 1] + np.sqrt(0.75) * e[:, k]
    arm, b = np.repeat(rng.integers(0, 2, subjects), visits), rng.standard_normal((subjects, 2)) * [1.0, 0.3]
    y = 1.0 + 0.5 * t + 0.2 * t * arm + b[g, 0] + b[g, 1] * t + e.ravel()
    X, Z = np.column_stack([np.ones(len(t)), t, arm, t * arm]), np.column_stack([np.ones(len(t)), t])
    residuals = (None, flc.Residual("ar1", subject=g, time=visit), flc.Residual("car1", subject=g, time=t))
    return [lambda r=r: flc.LinearMixedModel(y, X, Z, g, residual=r).fit() for r in residuals]


def wrong(rows: int) -> str | None:
    """Compare with covariance matrices in full."""
    from fastlmm_core.engines.residual.clusters import ClusterCriterion

    fit = model(table(rows)).fit()
    problem = fit.model.problem
    dense = ClusterCriterion(
        problem.clusters, problem.xy, problem.Z, problem.structure, list(problem.spans), problem.residual
    )
    value, gradient, hessian = dense.evaluate(fit.optimum.theta, 2)
    gap = abs(value - fit.optimum.value)
    decrement = float(np.sqrt(gradient @ np.linalg.solve(hessian, gradient)))
    if not fit.converged or gap > 1e-7 or decrement > 1e-4:
        return f"{fit.message}; criterion differs by {gap:.1e}, scaled gradient {decrement:.1e}"
    return None


def main() -> int:
    import fastlmm_core as flc

    options = _harness.parser(__doc__).parse_args()
    few, some, many, rounds = (2_500, 5_000, 10_000, 2) if options.smoke else (4_000, 20_000, 100_000, 5)
    report = _harness.Report("series", _harness.environment())
    why = wrong(few)
    if why is not None:
        report.fail(why)
        return report.finish(options)
    small, large = table(some), table(many)
    models = [model(small), model(large), model(large, effects=False)]
    plain = flc.lmm("y ~ x + (x | g)", large)
    names = [
        f"car1, random intercept and slope, {some:,} rows",
        f"car1, random intercept and slope, {many:,} rows",
        f"car1 of one series, {many:,} rows",
        f"random intercept and slope alone, {many:,} rows",
    ]
    subjects = 100 if options.smoke else 1_000
    short = [f"slopes of {subjects:,} subjects, {kind}" for kind in ("no structure", "ar1", "car1")]
    made_short = slopes(subjects)
    if not all(fit().converged for fit in made_short):
        report.fail("slopes: not certified")
        return report.finish(options)
    cases = [Case(name, made.fit) for name, made in zip(names, [*models, plain], strict=True)]
    cases += [Case(name, fit) for name, fit in zip(short, made_short, strict=True)]
    timings = _harness.interleave(cases, rounds)
    rows = [(case.name, _harness.format_seconds(timings.median(case.name))) for case in cases]
    report.table(f"{SUBJECTS} subjects, irregular times; fits alone", ("", "median"), rows)
    at = timings.median(names[1])
    report.target(names[1], at, 1.0, unit=" s")
    report.target(f"time per row, {many:,} / {some:,}", at / many / (timings.median(names[0]) / some), 1.5)
    if not options.smoke:
        report.target("slopes with ar1 residuals / without", timings.ratio(short[1], short[0]), 30.0)
        report.target("slopes with car1 residuals at own times / without", timings.ratio(short[2], short[0]), 60.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
