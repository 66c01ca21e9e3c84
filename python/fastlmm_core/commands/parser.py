"""Commands and their options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import __version__
from ..inference.options import DDF

__all__ = ["parser"]

_EXAMPLES = {
    "fit": """examples:
  {prog} fit sleepstudy "Reaction ~ Days + (Days | Subject)"
  {prog} fit trial.csv "score ~ arm * week + (week | patient)" --na . --save trial.lmm
  zcat trial.csv.gz | {prog} fit - "score ~ arm + week" --residual "us(visit | patient)" --json""",
    "anova": """example:
  {prog} anova orthodont "distance ~ age * Sex + (age | Subject)" --ddf kenward-roger""",
    "emmeans": """example:
  {prog} emmeans orthodont "distance ~ age * Sex + (age | Subject)" Sex --by age --at age=8,14 --contrasts pairwise""",
    "compare": """example:
  {prog} compare sleepstudy "Reaction ~ Days + (1 | Subject)" "Reaction ~ Days + (Days | Subject)\"""",
    "predict": """example:
  {prog} predict sleepstudy "Reaction ~ Days + (Days | Subject)" --new new.csv --effects all --interval prediction""",
    "plot": """example:
  {prog} plot sleepstudy "Reaction ~ Days + (Days | Subject)" --output fit.png""",
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    name = Path(sys.argv[0]).name
    program = "python -m fastlmm_core" if name in ("__main__.py", "-m", "-c") else name
    out = argparse.ArgumentParser(
        prog=program,
        description="Linear mixed models. Without a command: fit a built-in example.",
        epilog=_EXAMPLES["fit"].format(prog=program).replace("examples:", "examples (more by COMMAND --help):"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--version", action="version", version=f"fastlmm_core {__version__}")
    commands = out.add_subparsers(dest="command", metavar="command")

    def command(name: str, said: str, formulas: int = 1) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name, help=said, description=f"{said[0].upper()}{said[1:]}.",
            epilog=_EXAMPLES[name].format(prog=program)
            + "\n\nexit status: 0 certified, 1 not certified, 2 the input cannot be used",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        _data(one, formulas)
        return one

    fit = command("fit", "fit a model and print a summary")
    fit.add_argument("--level", type=float, default=0.95, help="of the confidence limits (default: %(default)s)")
    fit.add_argument("--save", metavar="PATH", help="write the result to a file that fastlmm_core.load reads")
    _tests(fit)
    anova = command("anova", "F tests of the terms of the fixed part")
    anova.add_argument("--type", choices=("I", "II", "III"), default="III", help="(default: %(default)s)")
    _tests(anova)
    means = command("emmeans", "marginal means of factors, and comparisons")
    means.add_argument("factors", nargs="+", help="columns whose means are wanted")
    means.add_argument("--by", nargs="+", metavar="COL", help="columns within whose levels means are compared")
    means.add_argument("--at", nargs="+", default=[], metavar="COL=VALUES", help="values of covariates, e.g. age=8,14")
    means.add_argument("--contrasts", help="pairwise, reference, sequential, effects or polynomial")
    means.add_argument("--adjust", help="for the number of comparisons, e.g. tukey, holm, none")
    means.add_argument("--level", type=float, default=0.95, help="of the confidence limits (default: %(default)s)")
    _tests(means)
    command("compare", "compare models by likelihood ratio tests and information criteria", 2)
    predict = command("predict", "predictions for new rows, as CSV")
    predict.add_argument("--new", metavar="FILE", help="the new rows; by default those of the fit")
    predict.add_argument("--effects", default="population", help="population, all, or a grouping factor")
    predict.add_argument("--interval", choices=("confidence", "prediction"), help="also give limits")
    predict.add_argument("--level", type=float, default=0.95, help="of the limits (default: %(default)s)")
    plot = command("plot", "draw four plots of a fit")
    plot.add_argument("--output", "-o", default="fit.png", help="name of the picture (default: %(default)s)")
    plot.add_argument("--x", metavar="COL", help="horizontal axis of the first plot")
    plot.add_argument("--by", metavar="COL", help="colours of the first plot")
    return out


def _data(one: argparse.ArgumentParser, formulas: int) -> None:
    """What says which model is fitted to what."""
    one.add_argument("file", help="CSV (also .gz; first line: column names), Parquet, - for CSV from standard input, "
                                  "or the name of a built-in data set")  # fmt: skip
    if formulas == 1:
        one.add_argument("formula", help='e.g. "y ~ x + (x | g)"')
    else:
        one.add_argument("formula", nargs="+", help="two or more, from the smaller to the larger or as they come")
    one.add_argument("--ml", action="store_true", help="maximum likelihood instead of REML")
    one.add_argument("--weights", metavar="COL", help="column of prior weights: residual variance sigma^2 / weights")
    one.add_argument("--offset", metavar="COL", help="column of the known part of the mean")
    one.add_argument("--sigma", type=float, help="residual standard deviation where it is known, e.g. 1 where weights "
                                                 "are 1/variance, in a meta-analysis")  # fmt: skip
    one.add_argument("--residual", metavar="TERM", help='structure of the residuals, e.g. "ar1(week | patient)"')
    one.add_argument("--decimal", choices=(".", ","), default=".", help="in the numbers of CSV (default: %(default)s)")
    one.add_argument("--na", action="append", default=[], metavar="TEXT",
                     help="stands for a missing value in CSV, beside NA, NaN and nothing; can be repeated")  # fmt: skip
    one.add_argument("--json", action="store_true", help="print JSON instead of text")


def _tests(one: argparse.ArgumentParser) -> None:
    one.add_argument("--ddf", choices=DDF, default="satterthwaite",
                     help="degrees of freedom of tests and limits (default: %(default)s)")  # fmt: skip
