"""sleepstudy (180 rows, 18 subjects, random slope): the cost of one small fit, from arrays and from a formula.

Everything a call does is timed: construction of the model, the optimisation and the result.
"""

from __future__ import annotations

import itertools
import sys

import _harness

# isort: split
import formulaic
import pandas as pd

from _peers import (
    array_peers,
    fastlmm_arrays,
    fastlmm_formula,
    formula_peers,
    lmer_case,
    lmer_from_matrices_case,
    send_frame,
)
from _problems import SLEEPSTUDY_FORMULA, SLEEPSTUDY_REML, sleepstudy_arrays, sleepstudy_frame
from _reference import objection


def unseen_formula_case(frame: pd.DataFrame) -> _harness.Case:
    """The formula path when nothing about the formula can be remembered from an earlier call.

    The name of the time is another one at every call, as formulaic and the rivals parse their formula every time.
    """
    import fastlmm_core as flc

    def variant(i: int) -> tuple[str, pd.DataFrame]:
        return SLEEPSTUDY_FORMULA.replace("Days", f"Days{i}"), frame.rename(columns={"Days": f"Days{i}"})

    variants = itertools.cycle([variant(i) for i in range(2000)])
    return _harness.Case(
        "fastlmm_core, formula unseen", lambda: flc.lmm(*next(variants)).fit(reml=True), _harness.answer_of
    )


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    rounds, min_sample = (2, 0.0) if options.smoke else (25, 0.03)
    data, frame = sleepstudy_arrays(), sleepstudy_frame()
    session = _harness.open_lme4()
    report = _harness.Report("sleepstudy: one small fit", _harness.environment(session))

    ours = fastlmm_arrays(data)
    result = ours.run()
    why = objection(result, data.y, data.x, data.z, data.codes)
    if why is None and abs(result.criterion - SLEEPSTUDY_REML) > 1e-6:
        why = f"the published criterion is {SLEEPSTUDY_REML}, not {result.criterion}"
    if why is not None:
        report.fail(why)
        return report.finish(options)

    peers, missing = array_peers(data)
    if session is not None:
        send_frame(session, frame, "Subject")
        peers = [*peers, lmer_from_matrices_case(session, SLEEPSTUDY_FORMULA), lmer_case(session, SLEEPSTUDY_FORMULA)]
    else:
        missing.append("lme4 (R)")
    timings = report.compare("From arrays (lmer: from its formula)", ours, peers, missing, rounds, min_sample)
    if timings is not None:
        report.target("construct + fit from arrays", 1e6 * timings.median(ours.name), 200.0, unit=" µs")
        if "lme4::lmer" in timings.names:
            report.target("lmer / fit from arrays", timings.ratio("lme4::lmer", ours.name), 50.0, at_least=True)

    ours = fastlmm_formula(SLEEPSTUDY_FORMULA, frame)
    fixed_part = _harness.Case("formulaic, fixed part only", lambda: formulaic.model_matrix("Reaction ~ Days", frame))
    unseen = unseen_formula_case(frame)
    peers, missing = formula_peers(frame, "Reaction", "Days", "Subject")
    peers = [fixed_part, unseen, *peers]
    if session is not None:
        peers.append(lmer_case(session, SLEEPSTUDY_FORMULA))
    else:
        missing.append("lme4 (R)")
    timings = report.compare("From a frame and a formula", ours, peers, missing, rounds, min_sample)
    if timings is not None:
        above = timings.difference(unseen.name, fixed_part.name)
        report.target("formula path (formula unseen) above formulaic", 1e3 * above, 0.5, unit=" ms")

    if session is not None:
        session.close()
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
