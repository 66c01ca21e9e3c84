"""Profile-likelihood intervals of every parameter (sleepstudy, random slope) against lme4's confint(method="profile").

Ours are solved for, lme4's are interpolated between points of the profiles: they are compared before anything is timed.
"""

from __future__ import annotations

import sys

import _harness

# isort: split
import numpy as np

from _peers import send_frame
from _problems import SLEEPSTUDY_FORMULA, sleepstudy_frame

AGREE = 1e-3
"""Share of the width of an interval by which limits may differ (lme4 interpolates)."""


def main() -> int:
    import fastlmm_core as flc
    from fastlmm_core.inference.profile.profile import confidence_limits

    options = _harness.parser(__doc__).parse_args()
    rounds, min_sample = (1, 0.0) if options.smoke else (5, 0.1)
    frame = sleepstudy_frame()
    session = _harness.open_lme4()
    report = _harness.Report("profile: intervals of six parameters", _harness.environment(session))

    result = flc.lmm(SLEEPSTUDY_FORMULA, frame).fit(reml=True)
    limits = np.array(list(confidence_limits(result, reml=False).values()))
    ours = _harness.Case("fastlmm_core", lambda: confidence_limits(result, reml=False))
    by_reml = _harness.Case("fastlmm_core, standard deviations by REML", lambda: confidence_limits(result))
    fixed = _harness.Case("fastlmm_core, fixed effects only", lambda: confidence_limits(result, parameters="fixed"))
    paths = _harness.Case("fastlmm_core, 17 points of each profile", lambda: result.profile(reml=False))
    if not np.isfinite(limits).all():
        report.fail(f"limits are missing: {limits}")
        return report.finish(options)

    cases = [ours, by_reml, fixed, paths]
    if session is not None:
        send_frame(session, frame, "Subject")
        session.eval(f"{{m <- lmer({SLEEPSTUDY_FORMULA}, d); NULL}}")
        confint = 'confint(m, method = "profile", quiet = TRUE)'
        # lme4 puts the fixed effects last
        theirs = np.roll(session.numbers(f"c(t({confint}))").reshape(-1, 2), 2, axis=0)
        worst = float(np.max(np.abs(limits - theirs) / np.ptp(theirs, axis=1, keepdims=True)))
        if worst > AGREE:
            report.fail(f"the limits differ from lme4's by {worst:.2g} of the width of the interval")
            return report.finish(options)
        cases.append(_harness.RCase("lme4::confint", session, f"function() {confint}"))
    timings = _harness.interleave(cases, rounds, min_sample)
    rows = [
        (case.name, _harness.format_seconds(timings.median(case.name)), f"{timings.ratio(case.name, ours.name):.3g}")
        for case in cases
    ]
    if session is None:
        rows.append(("lme4 (R)", "not installed", "-"))
    report.table("From a fit to its profile intervals", ("", "median", f"x {ours.name}"), rows)
    report.target("intervals of six parameters", 1e3 * timings.median(ours.name), 20.0, unit=" ms")
    if session is not None:
        ratio = timings.ratio("lme4::confint", ours.name)
        report.target("lme4 confint / all six intervals", ratio, 200.0, at_least=True)
        session.close()
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
