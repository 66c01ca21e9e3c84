"""Problems with designs of their own, and responses with values of their own, against a loop of single fits.

Answers are compared with those of single fits before anything is timed.  One thread unless a row says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import _harness

# isort: split
import numpy as np

from _harness import Case
from _problems import sleepstudy_arrays

CHECKED = 12
"""Problems that are compared with single fits, and that make up the loop that is timed."""

SHAPES = ((20, 5, 1, 5.0), (20, 5, 2, 12.0), (200, 5, 2, 40.0))
"""Groups, rows of each, random effects, and the microseconds that a problem may take."""


def stacked(count: int, m: int, n: int, q: int, seed: int = 3) -> tuple[np.ndarray, ...]:
    """y, X, Z, groups, each of problems with a covariate and effects drawn anew."""
    rng = np.random.default_rng(seed)
    each = np.repeat(np.arange(count), m * n)
    groups = np.tile(np.repeat(np.arange(m), n), count)
    X = np.column_stack([np.ones(len(each)), rng.standard_normal(len(each))])
    Z = X[:, :q]
    b = rng.standard_normal((count, m, q)) * [1.0, 0.7][:q]
    y = X.sum(axis=1) + np.sum(Z * b[each, groups], axis=1) + rng.standard_normal(len(each))
    return y, X, np.ascontiguousarray(Z), groups, each


def wrong(result: Any, singles: list[Any]) -> str | None:
    """Why the first fits are not the single fits."""
    for i, one in enumerate(singles):
        if not result.converged[i] or abs(result.criterion[i] - one.criterion) > 1e-7 * (1.0 + abs(one.criterion)):
            return f"problem {i}: {result.criterion[i]} where a single fit has {one.criterion}"
        if np.nanmax(np.abs(result.params[i] - one.params) / one.bse) > 1e-6:
            return f"problem {i}: other coefficients than a single fit"
    return None


def compare(
    report: _harness.Report, name: str, fit: Callable[[int | None], Any], loop: Callable[[], list[Any]], count: int,
    limit: float, rounds: int,
) -> tuple[str, ...] | None:  # fmt: skip
    """A row of the table: time per problem, and of the loop beside it."""
    why = wrong(fit(1), loop())
    if why is not None:
        report.fail(f"{name}: {why}")
        return None
    cases = [Case("one", lambda: fit(1)), Case("two", lambda: fit(2)), Case("loop", loop)]
    timings = _harness.interleave(cases, rounds)
    per = float(np.min(timings.column("one"))) / count
    ratio = timings.ratio("loop", "one") * count / CHECKED
    report.target(f"{name}: microseconds per problem", 1e6 * per, limit)
    report.target(f"{name}: one thread / two", timings.ratio("one", "two"), 1.8, at_least=True)
    return name, _harness.format_seconds(per), f"{ratio:.0f}", f"{timings.ratio('one', 'two'):.2f}"


def dropout(
    report: _harness.Report, model: Any, Y: np.ndarray, time: np.ndarray, subject: np.ndarray, rounds: int
) -> None:
    """Responses of which a third of the subjects leaves after one of five days, against the complete ones."""
    leave = np.isin(subject, np.unique(subject)[::3])
    last = np.array([4, 5, 6, 7, 8])[np.arange(len(Y)) % 5]
    masked = np.where(leave & (time > last[:, None]), np.nan, Y)
    cases = [
        Case("five masks", lambda: model.fit_many(masked, missing="drop", n_jobs=1)),
        Case("complete", lambda: model.fit_many(Y, n_jobs=1)),
    ]
    timings = _harness.interleave(cases, rounds)
    report.target("dropout by five masks / complete", timings.ratio("five masks", "complete"), 2.5)


def covariate(report: _harness.Report, model: Any, Y: np.ndarray, rounds: int) -> None:
    """A covariate of each response's own, beside what it takes to read it, against the responses without one."""
    C = np.random.default_rng(4).standard_normal(Y.shape)
    batch = model.fit_many(Y, covariates={"c": C}, n_jobs=1)
    for i in range(CHECKED):
        X = np.column_stack([model.exog, C[i]])
        one = type(model)(Y[i], X, model.exog_re, model.grouping.index).fit()
        if abs(batch.criterion[i] - one.criterion) > 1e-7 * abs(one.criterion):
            report.fail(f"covariate: {batch.criterion[i]} where a single fit has {one.criterion}")
            return
    cases = [
        Case("covariate", lambda: model.fit_many(Y, covariates={"c": C}, n_jobs=1)),
        Case("without", lambda: model.fit_many(Y, n_jobs=1)),
        Case("read", lambda: C.sum()),
    ]
    timings = _harness.interleave(cases, rounds)
    beside = timings.column("covariate") - timings.column("read")
    ratio = float(np.median(beside / timings.column("without")))
    report.target("a covariate of each response / without, beside reading it", ratio, 1.5)


def singly(report: _harness.Report, sleep: Any, y: np.ndarray, rounds: int) -> None:
    """One fit from arrays, and one more response on the same design."""
    import fastlmm_core as flc

    model = flc.LinearMixedModel(sleep.y, sleep.x, sleep.z, sleep.codes)
    model.fit()
    fresh = flc.LinearMixedModel(y, sleep.x, sleep.z, sleep.codes).fit()
    if abs(model.refit(y).criterion - fresh.criterion) > 1e-9 * abs(fresh.criterion):
        report.fail("refit is not the fit")
        return
    cases = [
        Case("fit", lambda: flc.LinearMixedModel(sleep.y, sleep.x, sleep.z, sleep.codes).fit()),
        Case("refit", lambda: model.refit(y)),
    ]
    timings = _harness.interleave(cases, rounds)
    for name, what, limit in (("fit", "LinearMixedModel(...).fit()", 60.0), ("refit", "refit(y)", 25.0)):
        least = 1e6 * float(np.min(timings.column(name)))
        report.target(f"sleepstudy, {what}", least, limit, unit=" µs")


def main() -> int:
    import fastlmm_core as flc

    options = _harness.parser(__doc__).parse_args()
    report = _harness.Report("each", _harness.environment())
    rounds, scale = (2, 100) if options.smoke else (9, 1)
    rows = []
    for m, n, q, limit in SHAPES:
        count = max(64, 200_000 // (m * n) // scale)
        y, X, Z, groups, each = stacked(count, m, n, q)

        def many(jobs: int | None, data: Any = (y, X, Z, groups, each)) -> Any:
            return flc.fit_each(*data, n_jobs=jobs)

        def alone(data: Any = (y, X, Z, groups, each)) -> list[Any]:
            parts = [[values[data[4] == k] for values in data[:4]] for k in range(CHECKED)]
            return [flc.LinearMixedModel(*part).fit() for part in parts]

        rows.append(compare(report, f"{m} x {n}, q = {q}", many, alone, count, limit, rounds))
    sleep = sleepstudy_arrays()
    model = flc.LinearMixedModel(sleep.y, sleep.x, sleep.z, sleep.codes)
    rng = np.random.default_rng(1)
    Y = model.fit().simulate(4_000 // scale, seed=2)
    W = rng.uniform(0.5, 2.0, Y.shape)
    holes = np.where(rng.uniform(size=Y.shape) < 0.15, np.nan, Y)
    for name, responses, weights, limit in (("sleepstudy, 15 % missing", holes, None, 6.0), ("weights", Y, W, 8.0)):

        def own(jobs: int | None, Y: Any = responses, W: Any = weights) -> Any:
            return model.fit_many(Y, missing="drop", weights=W, n_jobs=jobs)

        def one_by_one(Y: Any = responses, W: Any = weights) -> list[Any]:
            found = []
            for i in range(CHECKED):
                at = ~np.isnan(Y[i])
                w = None if W is None else W[i, at]
                found.append(flc.LinearMixedModel(Y[i, at], sleep.x[at], sleep.z[at], sleep.codes[at], weights=w).fit())
            return found

        rows.append(compare(report, name, own, one_by_one, len(Y), limit, rounds))
    full = model.fit().simulate(40_000 // scale, seed=3)
    dropout(report, model, full, np.asarray(sleep.x)[:, 1], np.asarray(sleep.codes), rounds)
    covariate(report, model, full, rounds)
    singly(report, sleep, full[0], rounds)
    header = ("", "per problem", "loop of single fits / this", "one thread / two")
    report.table("many problems", header, [row for row in rows if row is not None])
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
