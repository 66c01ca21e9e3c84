"""Tables from files: small CSV files by the csv module and numpy alone, everything else by a frame library.

Importing a frame library takes longer than reading, fitting and printing a small file.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError

__all__ = ["MISSING", "parse_csv", "read_table"]

Kind = Literal["label", "integer", "number"]

MISSING = ("", "NA", "NaN", "nan", "N/A", "null")
"""What stands for a missing value in a CSV file."""


class Dialect(NamedTuple):
    """How numbers and gaps are written in a CSV file."""

    decimal: str = "."
    missing: tuple[str, ...] = MISSING


PLAIN = Dialect()

_SMALL = 2_000_000  # bytes up to which a CSV file is read here
_LONG = 64  # characters beyond which text is not kept in arrays of fixed width
_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".tsv", ".txt")
_TYPES: dict[str, type[Any]] = {"label": np.str_, "integer": np.int64, "number": np.float64}


def read_table(path: str | Path, decimal: str = ".", missing: Sequence[str] = ()) -> Any:
    """Read a CSV or Parquet file.

    Parameters
    ----------
    path : str or pathlib.Path
        Name ending in .csv, .tsv, .txt (first line: column names; separated by comma, semicolon or tab), one of these
        and .gz, .parquet or .pq; "-" is CSV from the standard input.
    decimal : {".", ","}
        In the numbers of CSV; with a comma, columns are separated by semicolon or tab.
    missing : sequence of str
        What stands for a missing value in CSV beside `MISSING`.

    Returns
    -------
    dict of arrays, pyarrow.Table, polars.DataFrame or pandas.DataFrame
        A dict for small CSV files; otherwise from the first of these libraries that is installed.

    Raises
    ------
    LMMError
        If the file cannot be found or read, or no library for it is installed.
    """
    if decimal not in (".", ","):
        raise LMMError(f"decimal={decimal!r} must be '.' or ','")
    dialect = Dialect(decimal, (*MISSING, *missing))
    if str(path) == "-":
        return parse_csv(sys.stdin.read().removeprefix("\ufeff"), title="the standard input", dialect=dialect)
    path = Path(path)
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if suffix not in (_CSV if packed else _CSV + _PARQUET):
        raise LMMError(f"the file {str(path)!r} must be CSV or Parquet, with a name ending in .csv or .parquet")
    try:
        if suffix in _PARQUET:
            with path.open("rb"):  # the libraries word their complaints about missing files each in its own way
                pass
            return _by_library(path, _PARQUET_READERS, "Parquet", dialect)
        if path.stat().st_size > (_SMALL // 5 if packed else _SMALL):
            return _by_library(path, _CSV_READERS, "large CSV", dialect)
        with _opened(path) as file:
            return parse_csv(file.read(), title=f"the file {str(path)!r}", dialect=dialect)
    except UnicodeDecodeError as error:
        raise LMMError(f"the file {str(path)!r} is not UTF-8 text ({error}); convert it to UTF-8") from error
    except OSError as error:
        raise LMMError(f"the file {str(path)!r} cannot be read: {error.strerror or error}") from error


def _opened(path: Path) -> Any:
    """The text of a file, packed or not."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _known(cells: Any, kind: str) -> Any:
    """Cells with NaN for what stands for a missing number."""
    return ["nan" if cell in MISSING else cell for cell in cells] if kind == "number" else cells


def parse_csv(
    text: str, kinds: Mapping[str, Kind] | None = None, title: str = "the CSV text", dialect: Dialect = PLAIN
) -> dict[str, NDArray[Any]]:
    """Columns of a CSV text.

    Parameters
    ----------
    text : str
        First line: column names.  Comma, semicolon or tab separates, whichever the first line has most of.
    kinds : mapping, optional
        Column name to "label" (text), "integer" or "number", where they are known.  By default a column is what all
        its cells can be read as, and `MISSING` marks missing values.
    title : str
        What messages call the text.
    dialect : Dialect
        How numbers and gaps are written, where `kinds` does not say what they are.

    Returns
    -------
    dict of arrays
        int64 for whole numbers, float64 for other numbers (NaN where missing), text otherwise (None where missing).

    Raises
    ------
    LMMError
        If there are no rows, two columns of one name, or rows of different length.
    """
    first = text.partition("\n")[0]
    separator = max(_separators(dialect), key=first.count)
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        rows = []
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
            elif row:
                raise LMMError(
                    f"{title} has {len(row)} cells in line {reader.line_num} for {len(header)} column names in the "
                    "first line; correct it"
                )
    except csv.Error as error:
        raise LMMError(f"{title} cannot be read at line {reader.line_num}: {error}") from error
    if not rows:
        raise LMMError(f"{title} has no rows; give column names in the first line and one line per observation")
    for name in header:
        if header.count(name) > 1:
            raise LMMError(f"{title} has more than one column {name!r}; rename all but one")
    columns = zip(header, zip(*rows, strict=True), strict=True)
    if kinds is not None:
        return {name: np.array(_known(cells, kinds[name]), dtype=_TYPES[kinds[name]]) for name, cells in columns}
    return {name: _column([cell.strip() for cell in cells], dialect) for name, cells in columns}


def _separators(dialect: Dialect) -> str:
    return ";\t" if dialect.decimal == "," else ",;\t"


def _column(cells: list[str], dialect: Dialect) -> NDArray[Any]:
    """The array of whole numbers, of numbers or of text that the cells make."""
    gaps = [cell in dialect.missing for cell in cells]
    complete = not any(gaps)
    short = max(map(len, cells)) <= _LONG
    # Python reads 1_000 as a number, a file does not mean one by it
    if short and not all(gaps) and not any("_" in cell for cell in cells):
        read = cells if dialect.decimal == "." else [_pointed(cell) for cell in cells]
        filled = np.array(["nan" if gap else cell for gap, cell in zip(gaps, read, strict=True)])
        for kind in (np.int64, np.float64) if complete else (np.float64,):
            try:
                return filled.astype(kind)
            except (ValueError, OverflowError):
                continue
    if short and complete:
        return np.array(cells)
    out = np.empty(len(cells), dtype=object)
    out[:] = [None if gap else cell for cell, gap in zip(cells, gaps, strict=True)]
    return out


def _pointed(cell: str) -> str:
    """A number with a decimal comma as Python reads it; one with a point is none."""
    return cell.replace(",", ".") if "." not in cell else "."


def _by_library(
    path: Path, readers: Mapping[str, Callable[[Any, Path, Dialect], Any]], what: str, dialect: Dialect
) -> Any:
    """The file as read by the first library that is installed."""
    for library, read in readers.items():
        try:
            module = import_module(library)
        except ImportError:
            continue
        try:
            return read(module, path, dialect)
        except ImportError:  # pandas without an engine for Parquet
            continue
        except OSError:
            raise
        except Exception as error:  # every library has its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LMMError(f"the file {str(path)!r} cannot be read by {library}: {reason}") from error
    raise LMMError(f"reading a {what} file takes one of {', '.join(readers)}; install one, e.g. pip install pyarrow")


def _arrow_csv(pyarrow: Any, path: Path, dialect: Dialect) -> Any:
    module = import_module("pyarrow.csv")
    return module.read_csv(
        path,
        parse_options=module.ParseOptions(delimiter=_separator(path, dialect)),
        convert_options=module.ConvertOptions(
            null_values=list(dialect.missing), strings_can_be_null=True, decimal_point=dialect.decimal
        ),
    )


def _separator(path: Path, dialect: Dialect) -> str:
    with _opened(path) as file:
        return max(_separators(dialect), key=file.readline().count)


_CSV_READERS: dict[str, Callable[[Any, Path, Dialect], Any]] = {
    "pyarrow": _arrow_csv,
    "polars": lambda polars, path, dialect: polars.read_csv(
        path,
        separator=_separator(path, dialect),
        null_values=list(dialect.missing),
        decimal_comma=dialect.decimal == ",",
    ),
    "pandas": lambda pandas, path, dialect: pandas.read_csv(
        path,
        sep=_separator(path, dialect),
        na_values=list(dialect.missing),
        keep_default_na=False,
        decimal=dialect.decimal,
    ),
}
_PARQUET_READERS: dict[str, Callable[[Any, Path, Dialect], Any]] = {
    "pyarrow": lambda _, path, __: import_module("pyarrow.parquet").read_table(path),
    "polars": lambda polars, path, _: polars.read_parquet(path),
    "pandas": lambda pandas, path, _: pandas.read_parquet(path),
}
