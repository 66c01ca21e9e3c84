"""Robust standard errors CR2 with Satterthwaite's degrees of freedom for every coefficient, and a joint test.

Subjects with ten visits and dropout that rises to a fifth, 23 columns of X (visits, arms by visit, baseline
covariates), random intercept and slope.  The peer is numpy on matrices of all rows: I - H formed, and the degrees of
freedom from the covariances of all pairs of clusters, as clubSandwich and mmrm compute them; its time and memory grow
with the square of the number of subjects, so that it is given fewer of them.  Nothing is timed before both agree.
"""

from __future__ import annotations

import itertools
import sys
import tracemalloc

import _harness

# isort: split
import numpy as np

from _harness import Case

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

VISITS = 10


def problem(subjects: int, seed: int = 5) -> Data:
    """y, X (23 columns), Z (1, visit) and codes."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(subjects), VISITS)
    visit = np.tile(np.arange(VISITS), subjects)
    stay = rng.uniform(size=codes.size) > 0.2 * visit / (VISITS - 1)
    codes, visit = codes[stay], visit[stay]
    arm = rng.integers(0, 2, subjects)[codes]
    at = (visit[:, None] == np.arange(1, VISITS)).astype(float)
    base = np.column_stack([rng.standard_normal((subjects, 2)), rng.integers(0, 2, subjects)])[codes]
    x = np.column_stack([np.ones(codes.size), base, at, arm, at * arm[:, None]])
    z = np.column_stack([np.ones(codes.size), visit])
    effects = rng.standard_normal((subjects, 2)) * [1.0, 0.2]
    y = 0.3 * visit + np.sum(z * effects[codes], axis=1) + rng.standard_normal(codes.size)
    return y, x, z, codes


def dense(result: object, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors and degrees of freedom of all coefficients from matrices of all rows."""
    y, x, z, codes = data
    G, sigma2 = next(iter(result.G.values())), result.sigma2
    V = (z @ G @ z.T) * (codes[:, None] == codes) + sigma2 * np.eye(y.size)
    root = np.linalg.cholesky(V)
    xw, yw = np.linalg.solve(root, x), np.linalg.solve(root, y)
    phi = np.linalg.inv(xw.T @ xw)
    left = np.eye(y.size) - xw @ phi @ xw.T
    rest = left @ yw
    edges = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), y.size)
    errors, freedom = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    halves = []
    for begin, end in itertools.pairwise(edges):
        values, vectors = np.linalg.eigh(left[begin:end, begin:end])
        halves.append((vectors / np.sqrt(values)) @ vectors.T @ xw[begin:end] @ phi)
    for j in range(x.shape[1]):
        w = np.empty((y.size, len(halves)))
        scores = np.empty(len(halves))
        for i, (begin, end) in enumerate(itertools.pairwise(edges)):
            w[:, i] = left[:, begin:end] @ halves[i][:, j]
            scores[i] = halves[i][:, j] @ rest[begin:end]
        pairs = w.T @ w
        errors[j] = np.sqrt(scores @ scores)
        freedom[j] = np.trace(pairs) ** 2 / np.sum(pairs * pairs)
    return errors, freedom


def wrong(result: object, data: Data) -> str | None:
    """Compare with dense matrices."""
    table, (errors, freedom) = result.tidy(vcov="CR2"), dense(result, data)
    for name, ours, theirs in (("standard error", table["std_error"], errors), ("df", table["df"], freedom)):
        worst = float(np.max(np.abs(ours / theirs - 1.0)))
        if worst > 1e-8:
            return f"{name} differs by {worst:.1e} of itself"
    return None


def visits_model(data: Data) -> object:
    """The same rows with an unstructured covariance over visits, and no random effects."""
    import fastlmm_core as flc

    y, x, z, codes = data
    columns = {f"x{j}": x[:, j] for j in range(1, x.shape[1])}
    table = {"y": y, "id": codes, "visit": z[:, 1].astype(int), **columns}
    return flc.lmm(f"y ~ {' + '.join(columns)}", table, residual="us(visit | id)")


def main() -> int:
    import fastlmm_core as flc

    options = _harness.parser(__doc__).parse_args()
    few, subjects, many, rounds = (20, 50, 100, 2) if options.smoke else (300, 1_000, 20_000, 9)
    report = _harness.Report("robust", _harness.environment())
    small, data, large = problem(few), problem(subjects), problem(many)
    fits = {size: flc.LinearMixedModel(*made) for size, made in ((few, small), (subjects, data), (many, large))}
    why = wrong(fits[few].fit(), small)
    if why is not None:
        report.fail(why)
        return report.finish(options)
    L = np.eye(data[1].shape[1])[-9:]

    def robust(size: int) -> Case:
        def run() -> object:
            # a fit of its own: what is found for the first time is kept with it
            return fits[size].fit().tidy(vcov="CR2")

        return Case(f"fit and CR2 with df, {size:,} subjects", run)

    cases = [robust(size) for size in fits]
    plain = Case(f"fit and Satterthwaite, {subjects:,} subjects", lambda: fits[subjects].fit().tidy())
    known = fits[few].fit()
    peer = Case(f"CR2 with df by matrices of all rows, {few:,} subjects", lambda: dense(known, small))
    joint = Case(
        f"fit and joint test of 9 coefficients, {subjects:,} subjects",
        lambda: fits[subjects].fit().test(L, vcov="CR2"),
    )
    visits = visits_model(data)
    alone = Case(f"fit of us over visits, {subjects:,} subjects", visits.fit)
    own = Case(f"that fit and CR2 with df, {subjects:,} subjects", lambda: visits.fit().tidy(vcov="CR2"))
    timings = _harness.interleave([*cases, alone, own, plain, joint, peer], rounds)
    sizes = [*fits, subjects, subjects, subjects, subjects, few]
    rows = []
    for case, size in zip([*cases, alone, own, plain, joint, peer], sizes, strict=True):
        median = timings.median(case.name)
        rows.append((case.name, _harness.format_seconds(median), _harness.format_seconds(median / size)))
    caption = f"{data[1].shape[1]} columns, {data[0].size / subjects:.1f} rows a subject"
    report.table(caption, ("", "median", "per subject"), rows)
    result = fits[subjects].fit()
    tracemalloc.start()
    result.tidy(vcov="CR2")
    extra = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    at = timings.median(cases[1].name)
    report.target(f"fit and CR2 with df, {subjects:,} subjects", at, 0.1, unit=" s")
    after = timings.median(own.name) - timings.median(alone.name)
    report.target(f"CR2 with df after a fit of us over visits, {subjects:,} subjects", after, 0.1, unit=" s")
    report.target("memory besides the fit", extra, 50.0, unit=" MB")
    report.target(
        f"time per subject, {many:,} / {subjects:,}",
        timings.median(cases[2].name) / many / (at / subjects),
        1.5,
    )
    report.target(f"matrices of all rows / ours, {few:,} subjects", timings.ratio(peer.name, cases[0].name), 50.0, True)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
