"""Fits with several grouping factors: simulated twins of well-known shapes, timed from arrays to a certified optimum.

    python bench/crossed.py [shape ...] [--lme4]

Prints seconds and evaluations, the decrement that certifies the optimum, and the ratio to the time that one Cholesky
factorisation of the tail's matrix takes in the same run (crossed shapes); for nested shapes the time from arrays to a
fitted model, and its ratio to that of the same rows with the finest factor alone.  With --lme4 also the time of lme4
on the same data, if Rscript has it; the criteria must agree to 1e-6 relative.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import fastlmm_core as flc
from fastlmm_core import hierarchy, kernels, optimize
from fastlmm_core.hierarchy import Factor, condition_factors
from fastlmm_core.parameters import Block, CovarianceStructure

ROUND, ROUNDS = optimize.WIDE_ROUND, optimize.ITERATIONS // optimize.WIDE_ROUND
"""Iterations between changes to principal axes, and how many of these there may be."""


def _dense(codes):
    return np.unique(codes, return_inverse=True)[1]


def _structure(*widths):
    ends = np.cumsum(widths)
    return CovarianceStructure(tuple(Block(int(e - w), int(e), "full") for e, w in zip(ends, widths, strict=True)))


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


def insteval(rng):
    """73,421 rows, 2,972 students x 1,128 lecturers, service x department."""
    n = 73_421
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


SHAPES = {f.__name__: f for f in (pastes, penicillin, kb07, insteval, nested, movielens)}


def fit(y, X, factors, structure):
    """Arrays to optimum, as the model does it: pilot, Newton, change of coordinates where it is slow."""
    problem = condition_factors(y, X, factors, None, None, structure)
    criterion = problem.criterion()
    theta = hierarchy.start(problem)
    pilot = problem.pilot(200)
    if pilot is not None:
        theta = kernels.minimize_newton(pilot, theta, tolerance=1e-5)[0]
    turn = None
    for _ in range(ROUNDS):
        found = kernels.minimize_newton(
            criterion, theta, tolerance=min(1e-9 * problem.m**0.5, 1e-6), max_iterations=ROUND
        )
        if found[-1]:
            break
        factor = structure.factor(found[0])
        turn, axes = optimize._principal_axes(factor if turn is None else turn.T @ factor, structure)
        criterion.rotate(turn)
        theta = structure.theta(axes)
    return problem, criterion, found


def against_one_factor(y, X, terms, repeats=7):
    """Median seconds of all factors, and of the finest alone, from arrays to a fitted model, taking turns.

    The first fits are not counted: they import modules and touch memory for the first time.
    """
    finest = max(terms, key=lambda term: term[1].max())

    def all_factors():
        return flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(*term) for term in terms]).fit()

    def one_factor():
        return flc.LinearMixedModel(y, X, finest[0], finest[1]).fit()

    times = {all_factors: [], one_factor: []}
    for fit_one in times:
        fit_one()
    for _ in range(repeats):
        for fit_one, seconds in times.items():
            begin = time.perf_counter()
            result = fit_one()
            seconds.append(time.perf_counter() - begin)
            if not result.converged:
                raise SystemExit(result.optimum.message)
    return tuple(float(np.median(seconds)) for seconds in times.values())


def lme4(y, X, terms):
    """Seconds and REML criterion of lme4, None without it."""
    if shutil.which("Rscript") is None:
        return None
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
    if done.returncode != 0:
        return None
    return tuple(float(word) for word in done.stdout.split()[-2:])


def measure(name, with_lme4, repeats=3):
    y, X, terms = SHAPES[name](np.random.default_rng(3))
    factors = [
        Factor(np.ones((len(y), 1)) if Z is None else Z, codes, int(codes.max()) + 1, label)
        for Z, codes, label in terms
    ]
    structure = _structure(*(f.Z.shape[1] for f in factors))
    fit(*_small())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        problem, criterion, found = fit(y, X, factors, structure)
        times.append(time.perf_counter() - begin)
    seconds = float(np.median(times))
    value = found[3] + problem.offset(True)
    print(f"{name:12s} {seconds:9.4f} s  {criterion.n_evaluations:3d} evaluations  decrement {found[4]:.0e}", end="")
    sizes = np.diff(problem.layout.comp_slot)
    if len(sizes) and sizes.max() > 500:
        from scipy.linalg import lapack

        matrix = np.asfortranarray(np.eye(int(sizes.max())) * 2.0)
        begin = time.perf_counter()
        lapack.dpotrf(matrix)
        print(f"  {seconds / (time.perf_counter() - begin):6.1f} Cholesky factorisations", end="")
    if not len(sizes) and problem.n >= 100_000:
        together, alone = against_one_factor(y, X, terms)
        print(f"  model and fit {together:.4f} s: {together / alone:.1f} x one factor ({alone:.4f} s)", end="")
    if with_lme4:
        other = lme4(y, X, terms)
        if other is not None:
            if value > other[1] + 1e-6 * abs(other[1]):
                raise SystemExit(f"criteria differ: {value} here, {other[1]} by lme4")
            print(f"  lme4 {other[0]:.3f} s: {other[0] / seconds:.0f} x", end="")
    print(flush=True)


def _small():
    y, X, terms = penicillin(np.random.default_rng(0))
    return y, X, [Factor(np.ones((144, 1)), c, int(c.max()) + 1, name) for _, c, name in terms], _structure(1, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=["pastes", "penicillin", "kb07", "insteval", "nested"])
    parser.add_argument("--lme4", action="store_true", help="time lme4 too")
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        if shape not in SHAPES:
            parser.error(f"unknown shape {shape!r}: choose from {', '.join(SHAPES)}")
        measure(shape, arguments.lme4, 1 if shape == "movielens" else 3)
