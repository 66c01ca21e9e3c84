"""Fits with several grouping factors: simulated twins of well-known shapes, from arrays to a certified result.

The data of lme4's InstEval are replaced by a twin of the same shape, so that no data are needed.  On this twin the
packages from PyPI that can fit it are timed too: by ML from arrays, by REML from a frame and a formula.  With --lme4
the time of lme4 on the same data is measured too (minutes); the criteria must agree to 1e-6 relative.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _harness

# isort: split
import numpy as np
import pandas as pd

import _peers
from _harness import Case


def _dense(codes):
    return np.unique(codes, return_inverse=True)[1]


def penicillin(rng):
    """144 rows, 24 plates x 6 samples."""
    plate, sample = np.repeat(np.arange(24), 6), np.tile(np.arange(6), 24)
    y = 23 + 0.85 * rng.normal(size=24)[plate] + 1.9 * rng.normal(size=6)[sample] + 0.55 * rng.normal(size=144)
    return y, np.ones((144, 1)), [(None, plate, "plate"), (None, sample, "sample")]


def pastes(rng):
    """60 rows, 30 casks in 10 batches."""
    cask, batch = np.repeat(np.arange(30), 2), np.repeat(np.arange(10), 6)
    y = 60 + 2.9 * rng.normal(size=30)[cask] + 1.3 * rng.normal(size=10)[batch] + 0.8 * rng.normal(size=60)
    return y, np.ones((60, 1)), [(None, cask, "cask"), (None, batch, "batch")]


def insteval(rng, n=73_421):
    """73,421 rows, 2,972 students x 1,128 lecturers, service x department."""
    s = _dense(rng.integers(0, 2972, n))
    d = _dense((rng.pareto(1.2, n) * 60).astype(int) % 1128)
    service = rng.integers(0, 2, n).astype(float)
    dept = rng.integers(0, 14, d.max() + 1)[d]
    X = np.column_stack(
        [np.ones(n), service, *(dept == j for j in range(1, 14)), *(service * (dept == j) for j in range(1, 14))]
    )
    y = 3.2 + 0.1 * service + 0.32 * rng.normal(size=s.max() + 1)[s] + 0.5 * rng.normal(size=d.max() + 1)[d]
    return y + 1.18 * rng.normal(size=n), X, [(None, s, "s"), (None, d, "d")]


def movielens(rng):
    """1,000,000 ratings of 3,700 films by 6,000 users, skewed counts."""
    n = 1_000_000
    u = _dense((6000 * rng.beta(0.9, 3.0, n)).astype(int))
    f = _dense((3700 * rng.beta(0.7, 3.5, n)).astype(int))
    y = 3.5 + 0.4 * rng.normal(size=u.max() + 1)[u] + 0.6 * rng.normal(size=f.max() + 1)[f] + 0.9 * rng.normal(size=n)
    return y, np.ones((n, 1)), [(None, u, "u"), (None, f, "f")]


def ratings(rng, n=31_500_000, users=200_000, films=16_000):
    """31,500,000 ratings of 16,000 films by 200,000 users, skewed counts: at least 20 of a user, 50 of a film."""
    least = (20, 50)
    codes = []
    for levels, few, spread in ((users, least[0], 1.1), (films, least[1], 1.4)):
        share = rng.lognormal(0.0, spread, levels)
        rest = rng.choice(levels, n - few * levels, p=share / share.sum())
        codes.append(rng.permutation(np.concatenate([np.repeat(np.arange(levels), few), rest])))
    u, f = codes
    y = 3.5 + 0.4 * rng.normal(size=users)[u] + 0.6 * rng.normal(size=films)[f] + 0.9 * rng.normal(size=n)
    return y, np.ones((n, 1)), [(None, u, "u"), (None, f, "f")]


def nested(rng):
    """1,000,000 rows, 10 in each of 10 groups in each of 10,000, random slopes at both levels."""
    top = 10_000
    a, b = np.repeat(np.arange(top), 100), np.repeat(np.arange(top * 10), 10)
    X = np.column_stack([np.ones(len(a)), rng.normal(size=len(a))])
    y = X @ [1.0, 2.0] + np.sum(X * (rng.normal(size=(top, 2)) * [1.0, 0.5])[a], axis=1)
    y += np.sum(X * (rng.normal(size=(top * 10, 2)) * [0.7, 0.3])[b], axis=1) + rng.normal(size=len(a))
    return y, X, [(X, b, "b"), (X, a, "a")]


def kb07(rng):
    """1,790 rows, 56 subjects x 32 items, eight correlated effects of both."""
    rows = rng.permutation(56 * 32)[:1790]
    s, i = rows // 32, rows % 32
    cell = (s * 3 + i) % 8
    c = np.column_stack([cell & 1, cell >> 1 & 1, cell >> 2]) * 2.0 - 1.0
    X = np.column_stack(
        [np.ones(1790), c, c[:, 0] * c[:, 1], c[:, 0] * c[:, 2], c[:, 1] * c[:, 2], c[:, 0] * c[:, 1] * c[:, 2]]
    )
    y = 2180 + c @ [-67, -330, 80] + 600 * rng.normal(size=1790)
    y += np.sum(X * (rng.normal(size=(56, 8)) * [300, 50, 60, 90, 40, 30, 30, 10])[s], axis=1)
    y += np.sum(X * (rng.normal(size=(32, 8)) * [360, 30, 250, 40, 60, 40, 50, 20])[i], axis=1)
    return y, X, [(X, s, "s"), (X, i, "i")]


def worker_firm(rng, workers=100_000, firms=30_000, years=10):
    """1,000,000 rows, 100,000 workers over 10 years x 30,000 firms of skewed size, a fifth of the workers move.

    Firms lie on a line.  Three movers in four join two firms to a larger one close by that precedes both, which
    connects all firms; the others leave for firms close by, one move in twenty for anywhere.
    """
    size = 1.0 + rng.pareto(1.1, firms)

    def largest(candidates):
        return candidates[np.arange(len(candidates)), size[candidates].argmax(axis=1)]

    def move(origin):
        near = origin[:, None] + np.rint(rng.laplace(0.0, 50.0, (origin.size, 3))).astype(int)
        return np.where(rng.random(origin.size) < 0.05, rng.integers(0, firms, origin.size), largest(near % firms))

    first = np.arange(1, firms, 2)
    earlier = first[:, None] - 1 - rng.exponential(50.0, (first.size, 3)).astype(int)
    joining = np.column_stack([first, largest(np.maximum(earlier, 0)), np.minimum(first + 1, firms - 1)])
    others = rng.choice(firms, workers - first.size, p=size / size.sum())
    path = np.vstack([joining, np.repeat(others[:, None], 3, axis=1)])
    movers = slice(first.size, workers // 5)
    path[movers, 1] = move(path[movers, 0])
    path[movers, 2] = move(path[movers, 1])
    path = rng.permutation(firms)[rng.permutation(path)]
    leaves = rng.integers(1, years - 1, workers)[:, None]
    stage = (np.arange(years) >= leaves).astype(int) + (np.arange(years) >= rng.integers(leaves + 1, years))
    w, f = np.repeat(np.arange(workers), years), np.take_along_axis(path, stage, axis=1).ravel()
    x = rng.normal(size=w.size)
    y = 2.0 + 0.5 * x + 0.6 * rng.normal(size=workers)[w] + 0.4 * rng.normal(size=firms)[f]
    return y + 0.5 * rng.normal(size=w.size), np.column_stack([np.ones(w.size), x]), [(None, w, "w"), (None, f, "f")]


SHAPES = (pastes, penicillin, kb07, insteval, nested, movielens, worker_firm)

LARGE = (ratings,)
"""Shapes that are run when asked for by --shape: minutes on two threads (BENCH_THREADS=2), 5 GB above the arrays."""

SMOKE = {
    "pastes": {}, "penicillin": {}, "insteval": {"n": 3000}, "worker_firm": {"workers": 2000, "firms": 600},
    "ratings": {"n": 20_000, "users": 200, "films": 100},
}  # fmt: skip
"""Shapes of the smoke run, with their sizes."""

TARGETS = {"pastes": 2e-3, "penicillin": 2e-3, "kb07": 0.15, "movielens": 15.0, "ratings": 900.0}
"""Seconds from arrays to the result."""

MEMORY = {"movielens": 2.0, "ratings": 5.0}
"""GB above the arrays; such shapes are fitted once."""


def fit(data, reml=True):
    import fastlmm_core as flc

    y, X, terms = data
    return flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(*term) for term in terms]).fit(reml=reml)


def one_factor(data):
    """The same rows with the finest factor alone."""
    import fastlmm_core as flc

    y, X, terms = data
    Z, codes, _ = max(terms, key=lambda term: term[1].max())
    return flc.LinearMixedModel(y, X, Z, codes).fit()


def lme4(data):
    """Seconds and REML criterion of lme4, None without it."""
    if shutil.which("Rscript") is None:
        return None
    y, X, terms = data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        header = ["y", *(f"x{j}" for j in range(X.shape[1])), *(name for _, _, name in terms)]
        table = np.column_stack([y, X, *(codes for _, codes, _ in terms)])
        np.savetxt(path, table, delimiter=",", header=",".join(header), comments="", fmt="%.15g")
        fixed = "+".join(f"x{j}" for j in range(X.shape[1]))
        bars = "+".join(f"({'1' if Z is None else '0+' + fixed}|{name})" for Z, _, name in terms)
        script = (
            f'd <- read.csv("{path}"); library(lme4); t <- system.time(m <- lmer(y ~ 0+{fixed}+{bars}, d))[[3]]; '
            'cat(t, sprintf("%.12g", REMLcrit(m)), "\\n")'
        )
        done = subprocess.run(["Rscript", "-e", script], capture_output=True, text=True, check=False)
    return tuple(float(word) for word in done.stdout.split()[-2:]) if done.returncode == 0 else None


def ml_criterion(data, beta, variances, residual):
    """-2 log-likelihood of two crossed intercepts at any parameters, independently, in numpy.

    With r = y - X beta, L the relative standard deviations and W = I + L Z'Z L,
    n log(2 pi residual) + log|W| + (r'r - r'ZL W^-1 LZ'r) / residual; the first factor is eliminated from W.
    """
    y, X, ((_, first, _), (_, second, _)) = data
    a, b = np.sqrt(variances / residual)
    m, k = first.max() + 1, second.max() + 1
    r = y - X @ beta
    own = 1.0 + a * a * np.bincount(first, minlength=m)
    common = a * b * np.bincount(first * k + second, minlength=m * k).reshape(m, k)
    u, v = a * np.bincount(first, r, m), b * np.bincount(second, r, k)
    rest = np.diag(1.0 + b * b * np.bincount(second, minlength=k)) - common.T @ (common / own[:, None])
    v = v - common.T @ (u / own)
    explained = u @ (u / own) + v @ np.linalg.solve(rest, v)
    logdet = np.log(own).sum() + np.linalg.slogdet(rest)[1]
    return float(len(y) * np.log(2.0 * np.pi * residual) + logdet + (r @ r - explained) / residual)


def against_ml(report, name, data, rounds):
    """The packages from PyPI that fit two crossed intercepts by ML from arrays; answers first, then times."""
    y, X, terms = data

    def criterion(beta, variances, residual):
        return ml_criterion(data, beta, variances, residual)

    result = fit(data, reml=False)
    variances = np.array([result.G[factor].item() for _, _, factor in terms])
    recomputed = criterion(result.params, variances, result.sigma**2)
    if not abs(recomputed - result.criterion) <= _harness.criterion_tolerance(recomputed):
        report.fail(f"{name}: reports the criterion {result.criterion:.6f}, {recomputed:.6f} at its estimates")
        return
    ours = Case("fastlmm_core", lambda: fit(data, reml=False), _harness.answer_of)
    codes = np.column_stack([codes for _, codes, _ in terms])
    _against(report, f"{name} by ML, from arrays", ours, _peers.crossed_ml_peers(y, X, codes, criterion), rounds)


def against_reml(report, name, data, rounds):
    """The packages from PyPI that fit crossed intercepts by REML from a frame; answers first, then times."""
    y, X, terms = data
    fixed = [f"x{j}" for j in range(1, X.shape[1])]
    frame = pd.DataFrame(X[:, 1:], columns=fixed).assign(y=y, **{factor: codes for _, codes, factor in terms})
    formula = f"y ~ {' + '.join(fixed)} + {' + '.join(f'(1 | {factor})' for _, _, factor in terms)}"
    ours = _peers.fastlmm_formula(formula, frame)
    caption = f"{name} by REML, from a formula"
    _against(report, caption, ours, _peers.crossed_formula_peers(formula, frame), rounds)


def _against(report, caption, ours, peers, rounds):
    timings = report.compare(caption, ours, *peers, rounds=rounds)
    for peer in () if timings is None else timings.names[1:]:
        report.target(f"{peer} / {caption}", timings.ratio(peer, ours.name), 2.0, True)


def main() -> int:
    import fastlmm_core as flc

    parser = _harness.parser(__doc__)
    parser.add_argument("--lme4", action="store_true", help="time lme4 too")
    parser.add_argument("--slow", action="store_true", help="time a package from PyPI on worker_firm too (minutes)")
    parser.add_argument("--shape", choices=[shape.__name__ for shape in (*SHAPES, *LARGE)], help="this one only")
    options = parser.parse_args()
    report = _harness.Report("several grouping factors", _harness.environment())
    rows = []
    targets = []
    for shape in (*SHAPES, *LARGE):
        name = shape.__name__
        chosen = shape in SHAPES or options.smoke if options.shape is None else name == options.shape
        if not chosen or (options.smoke and name not in SMOKE):
            continue
        data = shape(np.random.default_rng(3), **(SMOKE[name] if options.smoke else {}))
        found: list = []
        try:
            begin = time.perf_counter()
            peak = _harness.peak_extra_bytes(lambda data=data, found=found: found.append(fit(data)))
            seconds = time.perf_counter() - begin
        except flc.LMMError as error:
            report.fail(f"{name}: {error}")
            continue
        (result,) = found
        if not result.converged:
            report.fail(f"{name}: {result.message}")
            continue
        cases = [Case(name, lambda data=data: fit(data))]
        if name == "nested":
            cases.append(Case("one factor", lambda data=data: one_factor(data)))
        if name in MEMORY:
            targets.append((f"peak memory, {name}", peak / 2**30, MEMORY[name], False, " GB"))
        else:
            timings = _harness.interleave(cases, 2 if options.smoke else 7)
            seconds = timings.median(name)
        if name == "nested":
            targets.append(("nested / one factor", timings.ratio(name, "one factor"), 4.0, False, ""))
        if name in TARGETS:
            targets.append((f"{name}, from arrays", seconds, TARGETS[name], False, " s"))
        other = lme4(data) if options.lme4 else None
        if other is not None:
            if result.criterion > other[1] + 1e-6 * abs(other[1]):
                report.fail(f"{name}: criterion {result.criterion}, {other[1]} by lme4")
            elif name == "insteval":
                targets.append(("lme4 / insteval", other[0] / seconds, 15.0, True, ""))
        if name == "insteval":
            against_ml(report, name, data, 2 if options.smoke else 7)
            against_reml(report, name, data, 2 if options.smoke else 7)
        if name == "worker_firm" and (options.slow or options.smoke):
            against_reml(report, name, data, 1)
        rows.append(
            (
                name,
                f"{len(data[0]):,}",
                " x ".join(f"{codes.max() + 1:,}" for _, codes, _ in data[2]),
                _harness.format_seconds(seconds),
                str(result.n_evaluations),
                f"{result.gradient_norm:.0e}",
                "-" if other is None else f"{other[0] / seconds:.0f}",
            )
        )
    header = ("", "rows", "levels", "construct + fit", "evaluations", "gradient", "lme4, x ours")
    report.table("from arrays to the result", header, rows)
    for sentence, value, limit, at_least, unit in targets:
        report.target(sentence, value, limit, at_least, unit)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
