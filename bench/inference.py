"""Tests of fixed effects: what Satterthwaite's and Kenward-Roger's degrees of freedom cost beside the fit.

Everything that a first request computes is timed: results are made afresh, so that nothing is remembered. The answers
are compared with lmerTest's and pbkrtest's (with recorded ones where R is missing) before any time is printed.
"""

from __future__ import annotations

import copy
import sys

import _harness

# isort: split
import numpy as np

from _harness import Case
from _peers import send_frame
from _problems import SLEEPSTUDY_FORMULA, growth, sleepstudy_arrays, sleepstudy_frame

RECORDED_DF = np.array([17.0, 17.0])  # pbkrtest 0.5.2, both coefficients of sleepstudy
RECORDED_SE = np.array([6.82455652769022, 1.54578888671664])


def fresh(result):
    """The result without what its tests have left in it."""
    out = copy.copy(result)
    out.__dict__.pop("_moments", None)
    return out


def table(result, ddf):
    from fastlmm_core.inference.wald import coefficient_table

    return coefficient_table(fresh(result), ddf)


def differs(found, df, se, tolerance=1e-5) -> str | None:
    """Why a coefficient table is not the reference's, or None."""
    for name, expected in (("df", df), ("std_error", se)):
        worst = float(np.max(np.abs(found[name] / expected - 1.0)))
        if not worst <= tolerance:
            return f"{name} differs by {worst:.2g} of its size"
    return None


def sleepstudy(report: _harness.Report, session, rounds: int, min_sample: float) -> None:
    import fastlmm_core as flc

    data = sleepstudy_arrays()

    def fit():
        return flc.LinearMixedModel(data.y, data.x, data.z, data.codes).fit()

    result = fit()
    df, se, peers, missing = RECORDED_DF, RECORDED_SE, [], []
    if session is not None and session.eval('suppressWarnings(require("pbkrtest", quietly = TRUE))') == "TRUE":
        send_frame(session, sleepstudy_frame(), "Subject")
        session.eval(f"{{once <- lmer({SLEEPSTUDY_FORMULA}, d); NULL}}")
        rows = "lapply(1:2, function(i) diag(2)[i, , drop = FALSE])"
        code = f"function() {{ V <- vcovAdj(once); sapply({rows}, function(l) Lb_ddf(l, vcov(once), V)) }}"
        peers.append(_harness.RCase("pbkrtest: vcovAdj + df", session, code))
        df = session.numbers(f"{{V <- vcovAdj(once); sapply({rows}, function(l) Lb_ddf(l, vcov(once), V))}}")
        se = session.numbers("sqrt(diag(as.matrix(vcovAdj(once))))")
        if session.eval('suppressWarnings(require("lmerTest", quietly = TRUE))') == "TRUE":
            session.eval(f"{{again <- lmerTest::lmer({SLEEPSTUDY_FORMULA}, d); NULL}}")
            peers.append(
                _harness.RCase(
                    "lmerTest: as_lmerModLmerTest + coef", session,
                    "function() coef(summary(lmerTest::as_lmerModLmerTest(once)))",
                )
            )  # fmt: skip
        else:
            missing.append("lmerTest (R)")
    else:
        missing += ["pbkrtest (R)", "lmerTest (R)"]
    for ddf in ("satterthwaite", "kenward-roger"):
        why = differs(table(result, ddf), df, se)
        if why is not None:
            report.fail(f"sleepstudy, {ddf}: {why}")
            return
    fitting = Case("construct + fit", fit)
    satterthwaite = Case("Satterthwaite", lambda: table(result, "satterthwaite"))
    roger = Case("Kenward-Roger", lambda: table(result, "kenward-roger"))
    cases = [fitting, satterthwaite, roger, *peers]
    timings = _harness.interleave(cases, rounds, min_sample)
    report.table(
        "sleepstudy: table of coefficients with degrees of freedom and p-values",
        ("", "median", "x fit"),
        [
            (c.name, _harness.format_seconds(timings.median(c.name)), f"{timings.ratio(c.name, fitting.name):.3g}")
            for c in cases
        ]
        + [(name, "-", "not installed") for name in missing],
    )
    report.target("Satterthwaite / fit", timings.ratio(satterthwaite.name, fitting.name), 0.5)
    if peers:
        ratio = timings.ratio(peers[0].name, roger.name)
        report.target("pbkrtest / Kenward-Roger", ratio, 200.0, at_least=True)


def large(report: _harness.Report, groups: int, rounds: int) -> None:
    import fastlmm_core as flc

    for times in ("shared", "own"):
        data = growth(groups, times=times)

        def fit(data=data):
            return flc.LinearMixedModel(data.y, data.x, data.z, data.codes).fit()

        result = fit()
        both = [table(result, ddf) for ddf in ("satterthwaite", "kenward-roger")]
        # observed and expected information agree up to sampling error; on the groups less one where times are shared
        why = differs(both[1], both[0]["df"], both[0]["std_error"], 1.0 / np.sqrt(groups))
        if why is None and times == "shared":
            why = differs(both[0], np.full(2, groups - 1.0), both[0]["std_error"], 1e-6)
        if why is not None:
            report.fail(f"{groups:,} groups, {times} times: {why}")
            return
        fitting = Case("construct + fit", fit)
        cases = [fitting] + [
            Case(ddf, lambda ddf=ddf, result=result: table(result, ddf)) for ddf in ("satterthwaite", "kenward-roger")
        ]
        timings = _harness.interleave(cases, rounds, 0.0)
        report.table(
            f"{10 * groups:,} rows, {groups:,} groups, {times} times",
            ("", "median", "x fit"),
            [
                (c.name, _harness.format_seconds(timings.median(c.name)), f"{timings.ratio(c.name, fitting.name):.3g}")
                for c in cases
            ],
        )
        report.target(f"Kenward-Roger / fit, {times} times", timings.ratio("kenward-roger", fitting.name), 5.0)


def batch(report: _harness.Report, count: int, rounds: int) -> None:
    import fastlmm_core as flc
    from fastlmm_core.inference.many import tests as batch_inference
    from fastlmm_core.inference.wald import coefficient_table, wald

    data = sleepstudy_arrays()
    model = flc.LinearMixedModel(data.y, data.x, data.z, data.codes)
    Y = model.fit().simulate(count, seed=1)
    found = model.fit_many(Y, n_jobs=1)
    contrast = np.array([1.0, 4.5])
    for ddf in ("satterthwaite", "kenward-roger"):
        df, joint = batch_inference.df(found, ddf), batch_inference.test(found, np.eye(2), None, ddf)
        for i in np.linspace(0, count - 1, 25).astype(int):
            single = found[int(i)]
            own = np.append(coefficient_table(single, ddf)["df"], wald(single, np.eye(2), None, ddf).df_denom)
            worst = float(np.max(np.abs(np.append(df[i], joint.df_denom[i]) / own - 1.0)))
            if not worst <= 1e-6:
                report.fail(f"batch, {ddf}: the degrees of freedom of response {i} differ by {worst:.2g} of their size")
                return
    fitting = Case("fit_many", lambda: model.fit_many(Y, n_jobs=1))
    cases = [
        fitting,
        Case("fit_many + p-values", lambda: batch_inference.pvalues(model.fit_many(Y, n_jobs=1))),
        Case("p-values, Satterthwaite", lambda: batch_inference.pvalues(found)),
        Case("a contrast, Satterthwaite", lambda: batch_inference.test(found, contrast)),
        Case("joint F, Satterthwaite", lambda: batch_inference.test(found, np.eye(2))),
        Case("p-values, Kenward-Roger", lambda: batch_inference.pvalues(found, "kenward-roger")),
        Case("joint F, Kenward-Roger", lambda: batch_inference.test(found, np.eye(2), None, "kenward-roger")),
    ]
    timings = _harness.interleave(cases, rounds, 0.0)
    report.table(
        f"{count:,} responses of sleepstudy",
        ("", "median", "per response", "x fit_many"),
        [
            (
                c.name, _harness.format_seconds(timings.median(c.name)),
                _harness.format_seconds(timings.median(c.name) / count), f"{timings.ratio(c.name, fitting.name):.3g}",
            )
            for c in cases
        ],
    )  # fmt: skip
    report.target("fit_many + p-values / fit_many", timings.ratio(cases[1].name, fitting.name), 1.5)


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    smoke = options.smoke
    session = _harness.open_lme4()
    report = _harness.Report("tests of fixed effects", _harness.environment(session))
    sleepstudy(report, session, 2 if smoke else 15, 0.0 if smoke else 0.03)
    large(report, 1_000 if smoke else 100_000, 2 if smoke else 9)
    batch(report, 1_000 if smoke else 100_000, 2 if smoke else 9)
    if session is not None:
        session.close()
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
