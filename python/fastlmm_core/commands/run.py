"""What each command does."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LMMError
from ..model import lmm
from ..tables.columns import Table
from .records import fit_record, plain, rows_record, table_record

if TYPE_CHECKING:
    from ..inference.options import Ddf
    from ..model import LinearMixedModel
    from ..result import LMMResult

__all__ = ["demo", "run"]

DEMO = "Reaction ~ Days + (Days | Subject)"


def demo() -> int:
    """Fit the built-in example."""
    from .. import datasets

    about = datasets.describe("sleepstudy")
    print(f"Fitting {DEMO} to the built-in data set sleepstudy ({about.n_rows} rows).\n")
    return _fit(lmm(DEMO, datasets.load("sleepstudy", frame="dict")).fit(), None)


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; the exit status.

    Raises
    ------
    LMMError
        For input that cannot be used.
    """
    level = getattr(options, "level", 0.95)
    if not 0.0 < level < 1.0:  # before the work, not after it
        raise LMMError(f"--level {level:g} must lie between 0 and 1, e.g. 0.95")
    data = _read(options.file, options)
    if options.command == "compare":
        return _compare(options, data)
    result = _model(options.formula, data, options).fit(reml=not options.ml)
    return {"fit": _fit, "anova": _anova, "emmeans": _emmeans, "predict": _predict, "plot": _plot}[options.command](
        result, options
    )


def _read(name: str, options: argparse.Namespace) -> Any:
    """A file, or a built-in data set where no file has the name."""
    from .. import datasets
    from ..tables.files import read_table

    if name != "-" and not Path(name).exists() and name in datasets.names():
        return datasets.load(name, frame="dict")
    if "~" in name and not Path(name).exists():
        raise LMMError(f"{name!r} is a formula: the file comes first, {options.command} FILE FORMULA")
    return read_table(name, options.decimal, options.na)


def _model(formula: str, data: Any, options: argparse.Namespace) -> LinearMixedModel:
    return lmm(
        formula, data, weights=options.weights, offset=options.offset, residual=options.residual, sigma=options.sigma
    )


def _said(result: LMMResult, text: Any, record: Any, as_json: bool) -> int:
    """Print one or the other; the exit status."""
    print(json.dumps(plain(record()), indent=2, allow_nan=False) if as_json else text(), flush=True)
    return 0 if result.converged else 1


def _fit(result: LMMResult, options: argparse.Namespace | None) -> int:
    if options is None:
        return _said(result, result.summary, None, False)
    if options.save:
        result.save(options.save)
    level, ddf = options.level, options.ddf
    return _said(
        result, lambda: result.summary(level=level, ddf=ddf), lambda: fit_record(result, level, ddf), options.json
    )


def _anova(result: LMMResult, options: argparse.Namespace) -> int:
    found = result.anova(options.type, ddf=options.ddf)
    return _said(
        result, lambda: found, lambda: _of_fit(result, options) | {"type": options.type} | table_record(found),
        options.json,
    )  # fmt: skip


def _of_fit(result: LMMResult, options: argparse.Namespace) -> dict[str, Any]:
    """What the fit knows, beside which each command has what it was asked for."""
    ddf: Ddf = getattr(options, "ddf", "satterthwaite")
    return {"fit": fit_record(result, getattr(options, "level", 0.95), ddf)}


def _emmeans(result: LMMResult, options: argparse.Namespace) -> int:
    found = result.emmeans(
        options.factors, by=options.by, at=_values(options.at), contrasts=options.contrasts, adjust=options.adjust,
        level=options.level, ddf=options.ddf,
    )  # fmt: skip

    def record() -> dict[str, Any]:
        out = _of_fit(result, options) | {"means": table_record(found)}
        made = found.comparison
        return out if made is None else out | {"contrasts": table_record(made)}

    return _said(result, lambda: found, record, options.json)


def _values(given: list[str]) -> dict[str, Any] | None:
    """``age=8,14`` as a mapping; values that are numbers as numbers."""
    out: dict[str, Any] = {}
    for text in given:
        name, sign, values = text.partition("=")
        if not sign or not values:
            raise LMMError(f"--at {text} must be COL=VALUES, e.g. age=8,14")
        try:
            out[name] = [float(value) for value in values.split(",")]
        except ValueError:
            out[name] = values.split(",")
    return out or None


def _compare(options: argparse.Namespace, data: Any) -> int:
    from ..inference.likelihood_ratio.compare import compare

    if len(options.formula) < 2:
        raise LMMError("compare takes two formulas or more")
    fits = [_model(formula, data, options).fit(reml=not options.ml) for formula in options.formula]
    found = compare(*fits)
    status = _said(
        fits[0], lambda: found,
        lambda: {"fits": [_of_fit(fit, options)["fit"] for fit in fits], **table_record(found)}, options.json,
    )  # fmt: skip
    return status if all(fit.converged for fit in fits) else 1


def _predict(result: LMMResult, options: argparse.Namespace) -> int:
    new = None if options.new is None else _read(options.new, options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        found = result.predict(new, options.effects, "population", options.interval, level=options.level)
    notes = [str(one.message) for one in told]
    columns = {"mean": found} if isinstance(found, np.ndarray) or not hasattr(found, "keys") else found
    table = Table(columns)
    columns = {name: np.asarray(table.column(name).raw).tolist() for name in table.names}
    if options.json:
        asked = {name: getattr(options, name) for name in ("effects", "interval", "level")}
        rows = {**asked, "rows": rows_record(columns), "notes": notes}
        return _said(result, None, lambda: _of_fit(result, options) | rows, True)
    for note in notes:
        print(note, file=sys.stderr)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(columns)
    out.writerows(zip(*columns.values(), strict=True))
    sys.stdout.flush()
    return 0 if result.converged else 1


def _plot(result: LMMResult, options: argparse.Namespace) -> int:
    axes = result.plot(options.x, options.by)
    try:
        axes[0, 0].figure.savefig(options.output, dpi=150)
    except (OSError, ValueError) as error:
        raise LMMError(f"--output {options.output}: {error}") from error
    return _said(
        result, lambda: options.output, lambda: _of_fit(result, options) | {"output": options.output}, options.json
    )
