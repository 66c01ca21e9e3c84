"""Crossed factors by conjugate gradients and random probes, against gpboost's own iterative method.

100,000 x 10,000 levels, a million rows, balanced at random.

Estimates of both are judged by the exact criterion at them, by block elimination, which takes longer than either fit;
--exact times the exact fit too. --large takes 1,000,000 x 100,000 levels and ten million rows, where no dense matrix
has room, and the two are compared with each other. One thread each and CPU time, unless --threads says otherwise: wall
time then.
"""

from __future__ import annotations

import sys
import time

import _harness

# isort: split
import numpy as np

import _peers

MIDDLE, LARGE, SMOKE = (100_000, 10_000, 1_000_000), (1_000_000, 100_000, 10_000_000), (600, 80, 4000)

SAME = 0.1
"""Units of the exact criterion by which estimates may be worse than the other ones and count as an answer."""

APART = 0.02
"""Relative difference of standard deviations up to which two answers are one, where there is no exact criterion."""


def simulated(users: int, films: int, n: int):
    """Balanced at random, as in the paper on gpboost's method (Kuendig and Sigrist 2025)."""
    rng = np.random.default_rng(1)
    u, f = rng.permutation(np.arange(n) % users), rng.permutation(np.arange(n) % films)
    x = rng.normal(size=n)
    y = 1.0 + 0.5 * x + 0.7 * rng.normal(size=users)[u] + 0.5 * rng.normal(size=films)[f] + rng.normal(size=n)
    return y, np.column_stack([np.ones(n), x]), u, f


def clock(threads: int):
    """CPU time of one thread, which other work on the machine does not lengthen; wall time of several."""
    return time.process_time if threads == 1 else time.perf_counter


def by_gpboost(data, threads: int):
    """Seconds, and standard deviations relative to that of the residual."""
    import gpboost

    y, X, u, f = data
    now = clock(threads)
    begin = now()
    model = gpboost.GPModel(
        group_data=np.column_stack([u, f]), likelihood="gaussian", matrix_inversion_method="iterative",
        num_parallel_threads=threads,
    )  # fmt: skip
    model.fit(y=y, X=X)
    seconds = now() - begin
    residual, *variances = np.ravel(model.get_cov_pars(format_pandas=False))[:3]
    return seconds, np.sqrt(np.array(variances) / residual)


def main() -> int:
    import fastlmm_core as flc

    parser = _harness.parser(__doc__)
    parser.add_argument("--large", action="store_true", help="ten million rows (minutes, 4 GB)")
    parser.add_argument("--exact", action="store_true", help="time the exact fit too (minutes)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    report = _harness.Report("crossed factors without dense matrices", _harness.environment())
    size = SMOKE if options.smoke else LARGE if options.large else MIDDLE
    data = simulated(*size)
    y, X, u, f = data
    jobs = options.threads
    now = clock(jobs)
    begin = now()
    terms = [flc.RandomTerm(None, u, "user"), flc.RandomTerm(None, f, "film")]
    model = flc.LinearMixedModel(y, X, terms=terms, n_jobs=jobs)
    made = now() - begin
    result = model.fit(reml=False, method="iterative", n_jobs=jobs)
    ours = now() - begin
    if not result.converged:
        report.fail(result.message)
    notes = [result.message]
    rows = [("fastlmm_core", f"{ours:.2f} s ({made:.2f} s of it the model)", *map("{:.4f}".format, result.theta))]
    theirs = None
    if _peers.installed("gpboost"):
        theirs, theta = by_gpboost(data, jobs)
        rows.append(("gpboost", f"{theirs:.2f} s", *map("{:.4f}".format, theta)))
        if options.large:
            answers = bool(np.abs(theta / result.theta - 1.0).max() < APART)
        else:
            values = [model.evaluate(one, reml=False).value for one in (result.theta, theta)]
            notes.append(f"exact criterion at the estimates: {values[0]:.4f} and {values[1]:.4f} (gpboost)")
            answers = values[1] - values[0] < SAME
            if values[0] - values[1] > SAME:
                report.fail("gpboost has found a lower criterion")
        if not answers:
            notes.append("gpboost's estimates are no answer to the same question: no ratio is printed")
            theirs = None
    if options.exact or options.smoke:
        begin = now()
        exact = model.fit(reml=False, n_jobs=jobs)
        rows.append(("exact", f"{now() - begin:.2f} s", *map("{:.4f}".format, exact.theta)))
        apart = (result.criterion - exact.criterion) / result.optimum.monte_carlo.criterion
        notes.append(f"criterion less the exact one: {apart:+.2f} of its Monte Carlo standard error")
        if abs(apart) > 4.0:
            report.fail("the criterion is not within its Monte Carlo error")
    levels = f"{size[0]:,} x {size[1]:,} levels, {size[2]:,} rows, threads: {jobs}"
    report.table(levels, ("", "from arrays to the result", "sd user", "sd film"), rows)
    report.table("notes", ("",), [(note,) for note in notes])
    if options.large:
        report.target("from arrays, ten million rows", ours / 60.0, 10.0, False, " min")
    if theirs is not None:
        report.target("gpboost / fastlmm_core", theirs / ours, 1.0, True)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
