"""Every subject, and every observation, left out and the model fitted anew: against one fit of all the data.

1,000 subjects with ten rows each at their own times, random intercept and slope, four columns of X.  The refits are
exact; before anything is timed, some of them (the most influential ones among them) are compared with fits of the rows
that are left, and the Cook's distances with those from these fits.
"""

from __future__ import annotations

import sys

import _harness

# isort: split
import numpy as np

from _harness import Case

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def problem(subjects: int, per_subject: int = 10, seed: int = 5) -> Data:
    """y, X (four columns), Z (1, t) and codes."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(subjects), per_subject)
    n = codes.size
    t = rng.uniform(-1.0, 1.0, n)
    x = np.column_stack([np.ones(n), t, rng.standard_normal(n), rng.standard_normal(subjects)[codes]])
    z = np.ascontiguousarray(x[:, :2])
    b = rng.standard_normal((subjects, 2)) @ np.array([[1.0, 0.3], [0.0, 0.7]])
    y = x @ np.array([1.0, -0.5, 0.2, 0.4]) + np.sum(z * b[codes], axis=1) + rng.standard_normal(n)
    return y, x, z, codes


def wrong(found: object, result: object, data: Data, by: str, count: int) -> str | None:
    """Compare some deletions with fits of the rows that are left."""
    import fastlmm_core as flc

    y, x, z, codes = data
    units = {*found.most_influential(count).tolist(), *range(0, len(found), max(len(found) // count, 1))}
    for i in sorted(units):
        keep = codes != i if by == "group" else np.arange(y.size) != i
        fit = flc.LinearMixedModel(y[keep], x[keep], z[keep], codes[keep]).fit()
        if abs(found.criterion[i] - fit.criterion) > 1e-7:
            return f"without {by} {i}: criterion {found.criterion[i]} instead of {fit.criterion}"
        if np.max(np.abs(found.params[i] - fit.params) / fit.bse) > 1e-7:
            return f"without {by} {i}: coefficients {found.params[i]} instead of {fit.params}"
        if np.max(np.abs(found.theta[i] - fit.theta)) > 1e-7:
            return f"without {by} {i}: theta {found.theta[i]} instead of {fit.theta}"
        change = result.params - fit.params
        distance = change @ np.linalg.solve(result.cov_params(), change) / change.size
        if abs(found.cooks_distance[i] - distance) > 1e-6 * distance:
            return f"without {by} {i}: Cook's distance {found.cooks_distance[i]} instead of {distance}"
    return None


def main() -> int:
    import fastlmm_core as flc
    from fastlmm_core.diagnostics.influence import influence

    options = _harness.parser(__doc__).parse_args()
    subjects, rounds = (150, 2) if options.smoke else (1_000, 15)
    data = problem(subjects)
    report = _harness.Report("influence", _harness.environment())
    result = flc.LinearMixedModel(*data).fit()
    for by in ("group", "observation"):
        why = wrong(influence(result, by), result, data, by, 2 if options.smoke else 10)
        if why is not None:
            report.fail(why)
            return report.finish(options)
    fit = Case("one fit, construction to result", lambda: flc.LinearMixedModel(*data).fit())
    groups = Case("without each subject", lambda: influence(result, "group"))
    rows = Case("without each observation", lambda: influence(result, "observation"))
    timings = _harness.interleave([fit, groups, rows], rounds)
    counts = {fit.name: 1, groups.name: subjects, rows.name: data[0].size}
    report.table(
        f"{subjects:,} subjects, {data[0].size:,} rows, q = 2, p = 4",
        ("", "fits", "median", "per fit", "x one fit"),
        [
            (
                name,
                f"{count:,}",
                _harness.format_seconds(timings.median(name)),
                _harness.format_seconds(timings.median(name) / count),
                f"{timings.ratio(name, fit.name):.1f}",
            )
            for name, count in counts.items()
        ],
    )
    report.target(f"{subjects:,} refits without a subject / one fit", timings.ratio(groups.name, fit.name), 20.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
