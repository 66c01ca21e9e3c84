"""Structured residuals: the FEV trial, and 1,000 subjects over ten visits with dropout, 23 coefficients.

Every fit is timed from arrays to Satterthwaite's degrees of freedom of all coefficients; the FEV trial from a frame and
a formula, too, beside formulaic's matrix alone, nlme's gls and glmmTMB where R has them.  The answers are compared with
the criterion that mmrm and SAS have (FEV) and with the criterion by matrices of all rows.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import _harness

# isort: split
import formulaic
import numpy as np

import fastlmm_core as flc
from _harness import Case, RCase
from _peers import send_frame

FEV_REML = 3386.44987116234
FEV_FORMULA = "RACE + SEX + ARMCD * AVISIT"
STRUCTURES = ("us", "toeph", "adh", "csh", "ar1h", "toep", "ad", "cs", "ar1", "diag")


class Data(NamedTuple):
    """Rows of subjects over visits."""

    y: np.ndarray
    x: np.ndarray
    subject: np.ndarray
    visit: np.ndarray


def fev() -> Data:
    """The FEV data with the columns of its formula."""
    table = flc.datasets.load("fev").dropna(subset="FEV1")
    model = flc.lmm(f"FEV1 ~ {FEV_FORMULA}", table, residual="us(AVISIT | USUBJID)")
    codes = np.unique(table["USUBJID"], return_inverse=True)[1]
    return Data(model.endog, model.exog, codes, table["VISITN"].to_numpy())


def trial(subjects: int, visits: int = 10, patterns: int | None = None) -> Data:
    """A trial with an unstructured covariance and dropout rising to 20 %: two arms by visits, three covariates.

    The visits seen are those of the first `patterns` subjects again and again, by default of all.
    """
    rng = np.random.default_rng(1)
    root = rng.normal(size=(visits, visits)) * 0.4 + 2.0 * np.eye(visits)
    arm, base, race = rng.integers(0, 2, subjects), rng.normal(size=subjects), rng.integers(0, 3, subjects)
    Y = rng.normal(size=(subjects, visits)) @ root.T + 2.0 * rng.normal(size=(subjects, 1))
    Y += np.linspace(0.0, 3.0, visits) * (1 + arm[:, None]) + 2.0 * base[:, None] + race[:, None]
    own = np.random.default_rng(2).random((subjects if patterns is None else patterns, visits))
    seen = np.resize(own, (subjects, visits)) >= np.linspace(0.0, 0.2, visits)
    i, k = np.nonzero(seen)
    at = np.eye(visits)[k]
    x = np.column_stack([at, at * arm[i, None], base[i], race[i] == 1, race[i] == 2]).astype(float)
    return Data(Y[i, k], x, i, k)


def fitted(data: Data, structure: str) -> Any:
    """A fit, with degrees of freedom."""
    residual = flc.Residual(structure, data.subject, data.visit)
    fit = flc.LinearMixedModel(data.y, data.x, residual=residual).fit()
    _ = fit.df
    return fit


def from_frame(table: Any) -> Any:
    """A fit of the FEV trial from a frame and a formula, with degrees of freedom."""
    fit = flc.lmm(f"FEV1 ~ {FEV_FORMULA}", table, residual="us(AVISIT | USUBJID)").fit()
    _ = fit.df
    return fit


PEERS = {
    "nlme": (
        f"gls(FEV1 ~ {FEV_FORMULA}, d, correlation = corSymm(form = ~ VISITN | USUBJID), "
        "weights = varIdent(form = ~ 1 | AVISIT))"
    ),
    "glmmTMB": (
        f"suppressWarnings(glmmTMB(FEV1 ~ {FEV_FORMULA} + us(AVISIT + 0 | USUBJID), d, dispformula = ~ 0, REML = TRUE))"
    ),
}
"""The FEV trial in packages of R."""


def peers(table: Any) -> dict[RCase, float]:
    """Fits of the FEV trial by packages of R, those that are there, and their criteria."""
    found = {}
    for package, code in PEERS.items():
        session = _harness.open_r(package)
        if session is not None:
            send_frame(session, table[["FEV1", "RACE", "SEX", "ARMCD", "AVISIT", "VISITN", "USUBJID"]], "USUBJID")
            session.numbers("{d$AVISIT <- factor(d$AVISIT); 0}")
            case = RCase(f"FEV, us, {package}", session, f"function() {code}")
            found[case] = float(session.numbers(f"-2 * as.numeric(logLik({code}))")[0])
    return found


def dense_criterion(fit: Any, data: Data) -> float:
    """-2 log-likelihood by REML, subject by subject."""
    S = np.asarray(fit.residual_covariance())
    places = data.visit - data.visit.min()
    log_det, H, c = 0.0, 0.0, np.column_stack([data.x, data.y])
    for subject in np.unique(data.subject):
        rows = np.flatnonzero(data.subject == subject)
        V = S[np.ix_(places[rows], places[rows])]
        log_det += np.linalg.slogdet(V)[1]
        H = H + c[rows].T @ np.linalg.solve(V, c[rows])
    p = data.x.shape[1]
    rest = H[-1, -1] - H[-1, :p] @ np.linalg.solve(H[:p, :p], H[:p, -1])
    return float((len(data.y) - p) * np.log(2.0 * np.pi) + log_det + np.linalg.slogdet(H[:p, :p])[1] + rest)


def evaluation(data: Data) -> Any:
    """An evaluation with gradient and Hessian, at another point each time."""
    model = flc.LinearMixedModel(data.y, data.x, residual=flc.Residual("us", data.subject, data.visit))
    engine = model.problem.criterion()
    point, rng = model.problem.start(engine), np.random.default_rng(0)
    return lambda: engine.evaluate(point + 1e-3 * rng.normal(size=len(point)), 2)


def drawn(fit: Any, data: Data, count: int) -> np.ndarray:
    """Responses of the fitted model, a row each."""
    S = np.asarray(fit.residual_covariance())
    subject = np.unique(data.subject, return_inverse=True)[1]
    errors = np.random.default_rng(3).normal(size=(count, subject.max() + 1, len(S))) @ np.linalg.cholesky(S).T
    return np.asarray(fit.predict(effects="population") + errors[:, subject, data.visit - data.visit.min()])


def not_as_one(model: Any, batch: Any, Y: np.ndarray) -> bool:
    """Whether some fit of many differs from the fit of its response alone."""
    singles = [model.refit(y) for y in Y[:20]]
    apart = [abs(batch.criterion[i] - one.criterion) > 1e-8 * abs(one.criterion) for i, one in enumerate(singles)]
    moved = [(np.abs(batch.params[i] - one.params) > 1e-6 * one.bse).any() for i, one in enumerate(singles)]
    return not batch.converged.all() or any(apart) or any(moved)


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    few, many, rounds, responses = (60, 300, 2, 30) if options.smoke else (1_000, 100_000, 7, 10_000)
    report = _harness.Report("structured residuals", _harness.environment())
    small, large, table = fev(), trial(few), flc.datasets.load("fev").dropna(subset="FEV1")
    fit = fitted(small, "us")
    if not fit.converged or abs(fit.criterion - FEV_REML) > 1e-8 * FEV_REML:
        report.fail(f"FEV: the criterion of mmrm is {FEV_REML}, not {fit.criterion}")
        return report.finish(options)
    model = fit.model
    Y = drawn(fit, small, responses)
    if not_as_one(model, model.fit_many(Y[:100], n_jobs=1, progress=False), Y):
        report.fail("many responses: not certified, or not the fits of single responses")
        return report.finish(options)
    others = peers(table)
    for value in (from_frame(table).criterion, *others.values()):
        if abs(value - FEV_REML) > 1e-3:
            report.fail(f"FEV: the criterion of mmrm is {FEV_REML}, not {value}")
            return report.finish(options)
    for name in STRUCTURES:
        fit = fitted(large, name)
        if not fit.converged or abs(fit.criterion - dense_criterion(fit, large)) > 1e-8 * abs(fit.criterion):
            report.fail(f"{name}: not certified, or not the criterion by matrices of subjects")
            return report.finish(options)
    cases: list[Any] = [Case("FEV, us", lambda: fitted(small, "us"))]
    cases += [Case("FEV, us, frame and formula", lambda: from_frame(table))]
    cases += [Case("FEV, formulaic alone", lambda: formulaic.model_matrix(FEV_FORMULA, table))]
    cases += list(others)
    cases += [Case(f"trial, {name}", lambda name=name: fitted(large, name)) for name in STRUCTURES]
    cases += [Case("trial, us, with Kenward-Roger", lambda: fitted(large, "us").tidy(ddf="kenward-roger"))]
    batch = f"FEV, us, {responses:,} responses"
    cases += [Case(batch, lambda: model.fit_many(Y, n_jobs=1, progress=False))]
    near, far = f"evaluation, {few:,} subjects", f"evaluation, {many:,} subjects"
    cases += [Case(near, evaluation(large)), Case(far, evaluation(trial(many, patterns=few)))]
    timings = _harness.interleave(cases, rounds)
    rows = [(case.name, _harness.format_seconds(timings.median(case.name))) for case in cases]
    report.table(f"{len(large.y):,} rows, {large.x.shape[1]} columns", ("", "median"), rows)
    if not options.smoke:
        report.target("FEV, us, from arrays with df", 1e3 * timings.median("FEV, us"), 1.0, unit=" ms")
        above = timings.difference("FEV, us, frame and formula", "FEV, formulaic alone")
        report.target("FEV, us, frame and formula above formulaic", 1e3 * above, 1.0, unit=" ms")
        for peer in others:
            report.target(f"{peer.name} / from arrays", timings.ratio(peer.name, "FEV, us"), 100.0, True)
        report.target("FEV, us, each of many responses", 1e6 * timings.median(batch) / responses, 100.0, unit=" us")
        report.target("trial, us", 1e3 * timings.median("trial, us"), 35.0, unit=" ms")
        with_kr = timings.median("trial, us, with Kenward-Roger")
        report.target("trial, us, with Kenward-Roger", 1e3 * with_kr, 300.0, unit=" ms")
        others = [timings.median(f"trial, {name}") for name in STRUCTURES[1:]]
        report.target("trial, slowest other structure", 1e3 * max(others), 15.0, unit=" ms")
        report.target("evaluation, 100 times the subjects", timings.ratio(far, near), 2.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
