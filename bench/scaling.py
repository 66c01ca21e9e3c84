"""Time per row from ten thousand to ten million rows (ten rows per subject, random slope), from arrays.

A flat curve means that the rows are read once; least squares on the same X is the yardstick at every size.
"""

from __future__ import annotations

import sys

import _harness

# isort: split
import numpy as np

from _peers import array_peers, fastlmm_arrays
from _problems import Arrays, growth
from _reference import objection


def rival_case(data: Arrays, ours: _harness.Case) -> _harness.Case | str:
    """mixedlm-rs on the same arrays, or why it is not timed."""
    for peer in array_peers(data, skip=("statsmodels",))[0]:
        if peer.name == "mixedlm-rs":
            anchor, answer = ours.answer(), peer.answer()
            assert anchor is not None and answer is not None
            return peer if _harness.disagreement(answer, anchor) is None else "refused"
    return "not installed"


def main() -> int:
    parser = _harness.parser(__doc__)
    parser.add_argument("--largest", type=float, default=1e7, help="rows of the largest problem (default 1e7)")
    options = parser.parse_args()
    sizes = [10**k for k in range(4, 9) if 10**k <= (1e4 if options.smoke else options.largest)]
    report = _harness.Report("scaling with the number of rows", _harness.environment())
    for times in ("shared", "own"):
        per_row = {}
        rows = []
        for size in sizes:
            data = growth(size // 10, times=times)
            ours = fastlmm_arrays(data)
            why = objection(ours.run(), data.y, data.x, data.z, data.codes)
            if why is not None:
                report.fail(f"{size:,} rows, {times} times: {why}")
                continue
            yardstick = _harness.Case("lstsq", lambda data=data: np.linalg.lstsq(data.x, data.y, rcond=None))
            cases = [ours, yardstick]
            rival = rival_case(data, ours) if size <= 10**6 else "-"
            if isinstance(rival, _harness.Case):
                cases.append(rival)
            timings = _harness.interleave(cases, 2 if options.smoke else (9 if size <= 10**6 else 3))
            per_row[size] = timings.median(ours.name) / size
            rows.append(
                (
                    f"{size:,}",
                    _harness.format_seconds(timings.median(ours.name)),
                    _harness.format_seconds(per_row[size]),
                    f"{timings.ratio(ours.name, 'lstsq'):.2f}",
                    rival if isinstance(rival, str) else f"{timings.ratio(rival.name, ours.name):.1f}",
                )
            )
            del data, ours, yardstick, cases, rival
        header = ("rows", "construct + fit", "per row", "fit / lstsq", "mixedlm-rs / fit")
        report.table(f"{times.capitalize()} times", header, rows)
        if len(per_row) > 2:
            large = [value for size, value in per_row.items() if size >= 10**5]
            report.target(f"time per row, largest size / 1e5 rows, {times} times", large[-1] / large[0], 1.5)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
