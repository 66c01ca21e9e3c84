"""Fits from the command line: ``python -m fastlmm_core fit data.csv "y ~ x + (x | g)"``.

Exit status: 0 for a certified fit, 1 for one that could not be certified, 2 for input that cannot be fitted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .errors import LMMError
from .model import lmm

if TYPE_CHECKING:
    from .inference.options import Ddf
    from .result import LMMResult

__all__ = ["main"]

_DEMO = "Reaction ~ Days + (Days | Subject)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the name of the program; by default those of the process.  Without any the built-in example
        is fitted.

    Returns
    -------
    int
        0 for a certified fit, 1 for one that could not be certified, 2 for input that cannot be fitted.
    """
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of columns need not exist in the terminal's encoding
    try:
        if options.command is None:
            return _demo()
        return _fit(options)
    except LMMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader, such as `head`, has seen enough; what is still buffered must not raise at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    program = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog="python -m fastlmm_core" if program in ("__main__.py", "-m", "-c") else program,
        description="Fit linear mixed models. Without a command: fit a built-in example.",
    )
    parser.add_argument("--version", action="version", version=f"fastlmm_core {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    fit = commands.add_parser(
        "fit",
        help="fit a model to a CSV or Parquet file",
        description="Fit a model to a table and print a summary.",
        epilog="Exit status: 0 certified, 1 not certified, 2 the input cannot be fitted.",
    )
    fit.add_argument("file", help="CSV (first line: column names) or Parquet")
    fit.add_argument("formula", help='e.g. "y ~ x + (x | g)"')
    fit.add_argument("--ml", action="store_true", help="maximum likelihood instead of REML")
    fit.add_argument("--weights", metavar="COL", help="column of prior weights: residual variance sigma^2 / weights")
    fit.add_argument("--offset", metavar="COL", help="column of the known part of the mean")
    fit.add_argument(
        "--ddf",
        choices=("satterthwaite", "kenward-roger", "residual", "normal"),
        default="satterthwaite",
        help="degrees of freedom of tests and limits (default: %(default)s)",
    )
    fit.add_argument("--level", type=float, default=0.95, help="of the confidence limits (default: %(default)s)")
    fit.add_argument("--json", action="store_true", help="print all estimates as JSON instead of the summary")
    return parser


def _demo() -> int:
    from . import datasets

    about = datasets.describe("sleepstudy")
    print(f"Fitting {_DEMO} to the built-in data set sleepstudy ({about.n_rows} rows).\n")
    result = lmm(_DEMO, datasets.load("sleepstudy", frame="dict")).fit()
    print(result.summary(), flush=True)
    return 0 if result.converged else 1


def _fit(options: argparse.Namespace) -> int:
    from .tables.files import read_table

    if not 0.0 < options.level < 1.0:  # before the work, not after it
        raise LMMError(f"--level {options.level:g} must lie between 0 and 1, e.g. 0.95")
    data = read_table(options.file)
    result = lmm(options.formula, data, weights=options.weights, offset=options.offset).fit(reml=not options.ml)
    if options.json:
        print(json.dumps(_plain(_record(result, options.level, options.ddf)), indent=2, allow_nan=False), flush=True)
    else:
        print(result.summary(level=options.level, ddf=options.ddf), flush=True)
    return 0 if result.converged else 1


def _record(result: LMMResult, level: float, ddf: Ddf) -> dict[str, Any]:
    """The estimates by their names in `LMMResult`."""
    from .report.tidy import tidy_columns

    model = result.model
    names = model.exog_names
    fixed = tidy_columns(result, "fixed", level, ddf, "auto")

    def named(column: str) -> dict[str, Any]:
        return dict(zip(names, fixed[column], strict=True))

    return {
        "version": __version__,
        "formula": None if model.spec is None else model.spec.formula,
        "reml": result.reml,
        "nobs": result.nobs,
        "n_dropped": model.n_dropped,
        "n_groups": result.n_groups,
        "params": named("estimate"),
        "bse": named("std_error"),
        "ddf": ddf,
        "df": named("df"),
        "tvalues": named("statistic"),
        "pvalues": named("p_value"),
        "conf_int": {
            name: [low, high] for name, low, high in zip(names, fixed["conf_low"], fixed["conf_high"], strict=True)
        },
        "level": level,
        "dropped_columns": result.dropped_columns,
        "random_effects_names": {
            term: model.exog_re_names[block.start : block.stop]
            for term, block in zip(model.term_names, model.structure.blocks, strict=True)
        },
        "theta": result.theta,
        "sigma2": result.sigma2,
        "G": result.G,
        "criterion": result.criterion,
        "llf": result.llf,
        "aic": result.aic,
        "bic": result.bic,
        "converged": result.converged,
        "singular": result.singular,
        "singular_components": result.singular_components,
        "gradient_norm": result.gradient_norm,
        "n_evaluations": result.n_evaluations,
        "message": result.message,
    }


def _plain(value: Any) -> Any:
    """What JSON knows: lists for arrays and tuples, null for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
