"""Genes: responses with weights and Kenward and Roger's tests against lme4, and FLASH-MM on its own shape.

One thread.  20,000 genes of 200 samples, four of each individual, with weights of their own, `(1 | Individual)`: fits
and tests of two contrasts.  lme4 and pbkrtest take some of the genes, one by one, as dream does.  FLASH-MM takes genes
of 2,000 cells of 25 samples, dense and complete.
"""

from __future__ import annotations

import sys
from typing import Any

import _harness

# isort: split
import numpy as np
from scipy import sparse

from _harness import Case
from _peers import installed

SAMPLES, INDIVIDUALS = 200, 50
CONTRASTS = {"treated": [0.0, 1.0, 0.0, 0.0], "difference": [0.0, 0.0, 1.0, -1.0]}


def study(genes: int, seed: int = 4) -> tuple[np.ndarray, ...]:
    """Y and weights (genes, samples), X, the individual of each sample; half of the genes do not vary between them."""
    rng = np.random.default_rng(seed)
    individual = np.repeat(np.arange(INDIVIDUALS), SAMPLES // INDIVIDUALS)
    ones = np.ones(SAMPLES)
    X = np.column_stack(
        [ones, rng.integers(0, 2, INDIVIDUALS)[individual], rng.standard_normal(SAMPLES),
         rng.standard_normal(INDIVIDUALS)[individual]]
    )  # fmt: skip
    W = rng.gamma(4.0, 0.25, (genes, SAMPLES))
    sd = rng.gamma(2.0, 0.5, genes) * rng.integers(0, 2, genes)
    Y = sd[:, None] * rng.standard_normal((genes, INDIVIDUALS))[:, individual]
    return Y + rng.standard_normal((genes, SAMPLES)) / np.sqrt(W), W, X, individual


def whole(model: Any, Y: np.ndarray, W: np.ndarray) -> tuple[Any, Any]:
    """Fits, and Kenward and Roger's tests of the contrasts."""
    batch = model.fit_many(Y, weights=W, n_jobs=1)
    return batch, batch.tests(CONTRASTS, ddf="kenward-roger")


def in_r(session: Any, Y: np.ndarray, W: np.ndarray, X: np.ndarray, individual: np.ndarray) -> Case | None:
    """lme4 and pbkrtest, gene by gene; None where they are missing."""
    if session is None or session.eval('suppressWarnings(require("pbkrtest", quietly = TRUE))') != "TRUE":
        return None
    for name, values in (("Y", Y.ravel()), ("W", W.ravel()), ("X", X[:, 1:].T.ravel()), ("g", individual)):
        session.assign(name, values)
    count, n = Y.shape
    rows = ", ".join(f"c({', '.join(map(str, row))})" for row in CONTRASTS.values())
    session.eval(
        f"{{X <- matrix(X, nrow = {n}); Y <- matrix(Y, ncol = {count}); W <- matrix(W, ncol = {count}); "
        "one <- function(i) suppressMessages(lmer(Y[, i] ~ X + (1 | g), weights = W[, i])); "
        "tested <- function(i) {m <- one(i); V <- vcovAdj(m); "
        f"sapply(list({rows}), function(l) Lb_ddf(l, vcov(m), V))}}; NULL}}"
    )
    return _harness.RCase("lme4 and pbkrtest", session, f"function() for (i in 1:{count}) tested(i)")  # type: ignore[return-value]


def wrong(session: Any, batch: Any, i: int) -> str | None:
    """Why the fit of a gene is not lme4's."""
    theirs = session.numbers(f"{{m <- one({i + 1}); c(REMLcrit(m), fixef(m))}}")
    gap = float(batch.criterion[i] - theirs[0])
    if gap > 1e-3 + 1e-9 * abs(theirs[0]):
        return f"gene {i}: criterion {batch.criterion[i]} where lme4 has {theirs[0]}"
    if gap > -1e-3 and (np.abs(batch.params[i] - theirs[1:]) > 1e-3 * batch.bse[i]).any():
        return f"gene {i}: other coefficients than lme4's"
    return None


def weighted(report: _harness.Report, session: Any, genes: int, rounds: int) -> None:
    import fastlmm_core as flc

    Y, W, X, individual = study(genes)
    model = flc.LinearMixedModel(Y[0], X, None, individual)
    batch, found = whole(model, Y, W)
    if not batch.converged.all() or any(np.isnan(test.pvalues).any() for test in found.values()):
        report.fail("some genes are not certified, or not tested")
        return
    some = min(20, genes)
    cases: list[Any] = [
        Case("fits and tests", lambda: whole(model, Y, W)),
        Case("fits", lambda: model.fit_many(Y, weights=W, n_jobs=1)),
    ]
    peer = in_r(session, Y[:some], W[:some], X, individual)
    if peer is None:
        print("R with lme4 and pbkrtest is missing: no comparison")
    else:
        reasons = [why for i in range(some) if (why := wrong(session, batch, i)) is not None]
        if reasons:
            report.fail(reasons[0])
            return
        cases.append(peer)
    timings = _harness.interleave(cases, rounds, 0.0)
    sizes = {"lme4 and pbkrtest": some}
    report.table(
        f"{genes} genes of {SAMPLES} samples with weights, (1 | Individual), {batch.singular.mean():.0%} singular",
        ("", "all genes", "per gene"),
        [
            (case.name, _harness.format_seconds(timings.median(case.name) * genes / sizes.get(case.name, genes)),
             _harness.format_seconds(timings.median(case.name) / sizes.get(case.name, genes)))
            for case in cases
        ],
    )  # fmt: skip
    report.target("fits and tests of 20,000 genes: seconds", timings.median(cases[0].name) * 20_000 / genes, 3.0)
    if peer is not None:
        ratio = timings.ratio(peer.name, cases[0].name) * genes / some
        report.target("lme4 and pbkrtest / fits and tests, per gene", ratio, 1_000.0, at_least=True)


def cells(
    report: _harness.Report, genes: int, cells: int, samples: int, limit: float, rounds: int, counts: bool = False
) -> None:
    """Complete responses of many cells: FLASH-MM's own shape, with counts as they come."""
    import fastlmm_core as flc

    if not installed("flash_mm"):
        print("FLASH-MM is missing: pip install FLASH-MM")
        return
    from flash_mm import lmmfit

    rng = np.random.default_rng(6)
    sample = rng.integers(0, samples, cells)
    X = np.column_stack([np.ones(cells), sample % 2, rng.standard_normal(cells), rng.standard_normal(cells)])
    sd = rng.uniform(0.3, 1.0, genes)
    shared = sd[:, None] * rng.standard_normal((genes, samples))
    if counts:
        Y = np.log1p(rng.poisson(0.1 * np.exp(shared)[:, sample]))
    else:
        Y = shared[:, sample] + rng.standard_normal((genes, cells))
    given = sparse.csr_array(Y) if counts else Y
    Z = np.eye(samples)[sample]
    model = flc.LinearMixedModel(Y[0], X, None, sample)

    def ours() -> Any:
        batch = model.fit_many(given, n_jobs=1)
        return batch, batch.pvalues

    batch, theirs = ours()[0], lmmfit(Y, X, Z, d=samples)
    gap = np.abs(batch.params - np.asarray(theirs["coef"]).T) / batch.bse
    spread = np.abs(np.asarray(theirs["se"]).T / batch.bse - 1.0)
    if np.median(gap) > 1e-4 or np.median(spread) > 1e-4:
        report.fail(f"{cells} cells: other estimates than FLASH-MM's")
        return
    cases = [Case("fastlmm_core", ours), Case("FLASH-MM", lambda: lmmfit(Y, X, Z, d=samples))]
    timings = _harness.interleave(cases, rounds, 0.0)
    kind = "counts" if counts else "numbers"
    report.table(
        f"{genes} genes of {cells} cells of {samples} samples, {kind}, p-values included",
        ("", "per gene"),
        [(case.name, _harness.format_seconds(timings.median(case.name) / genes)) for case in cases],
    )
    ratio = timings.ratio("FLASH-MM", "fastlmm_core")
    report.target(f"FLASH-MM / fastlmm_core, {cells} cells of {samples} samples, {kind}", ratio, limit, at_least=True)


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    session = _harness.open_lme4()
    report = _harness.Report("genes", _harness.environment(session))
    genes, rounds = (200, 2) if options.smoke else (20_000, 5)
    weighted(report, session, genes, rounds)
    if session is not None:
        session.close()
    few, rounds = (20, 2) if options.smoke else (1_000, 5)
    cells(report, few, 2_000, 25, 20.0, rounds)
    cells(report, few // 10, 20_000, 25, 2.0, rounds)
    cells(report, few, 2_000, 25, 20.0, rounds, counts=True)
    cells(report, few // 10, 20_000, 25, 20.0, rounds, counts=True)
    cells(report, few // 10, 20_000, 100, 20.0, rounds, counts=True)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
