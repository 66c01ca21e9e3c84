"""Small data sets of the mixed-models literature, for examples and tests.

``names()`` lists them, ``describe(name)`` says what is in one and who published it, ``load(name)`` returns it as a
pandas frame, a polars frame, a pyarrow table or a dict of NumPy arrays. Only the library that is asked for is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import NDArray

from ..errors import LMMError
from ..support.arguments import checked
from ..support.display import Cells, Shown
from ..tables.files import parse_csv

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["Column", "Description", "describe", "load", "names"]

FrameKind = Literal["pandas", "polars", "pyarrow", "dict"]


@dataclass(frozen=True)
class Column:
    """One column of a data set.

    Parameters
    ----------
    kind
        ``"label"`` (string), ``"integer"`` (int64) or ``"number"`` (float64).
    meaning
        What the column holds.
    unit
        Unit of measurement, empty for labels and for numbers without one.
    """

    kind: Literal["label", "integer", "number"]
    meaning: str
    unit: str = ""


@dataclass(frozen=True, repr=False)
class Description(Shown):
    """What a data set holds and where it comes from.

    Parameters
    ----------
    name
        The name that `load` takes.
    title
        One sentence.
    n_rows
        Number of rows.
    columns
        Column name to `Column`, in the order of the file.
    formula
        A model that is commonly fitted to these data.
    source
        Where this copy was taken from.
    citation
        The publication in which the data appeared.
    """

    name: str
    title: str
    n_rows: int
    columns: dict[str, Column] = field(hash=False)
    formula: str
    source: str
    citation: str

    def _shown(self) -> Iterator[str | Cells]:
        yield f"{self.name}: {self.title} {self.n_rows} rows."
        units = {name: f" [{column.unit}]" if column.unit else "" for name, column in self.columns.items()}
        rows = [[name, column.kind, column.meaning + units[name]] for name, column in self.columns.items()]
        yield Cells(["", "kind", "meaning"], rows, 3)
        yield f"Example: {self.formula}"
        yield f"Source: {self.source}"
        yield f"Citation: {self.citation}"


_DAVIES = (
    "O. L. Davies and P. L. Goldsmith (eds.), Statistical Methods in Research and Production, 4th ed., "
    "Oliver and Boyd, Edinburgh, 1972"
)

_DESCRIPTIONS: dict[str, Description] = {
    d.name: d
    for d in (
        Description(
            name="sleepstudy",
            title="Reaction times of eighteen drivers on ten days, with three hours in bed per night.",
            n_rows=180,
            columns={
                "Reaction": Column("number", "average reaction time in a vigilance test", "ms"),
                "Days": Column("integer", "day of the study (days 0 and 1 were training, 2 the baseline)", "days"),
                "Subject": Column("label", "subject"),
            },
            formula="Reaction ~ Days + (Days | Subject)",
            source="R package lme4, data set sleepstudy",
            citation=(
                "G. Belenky et al., Patterns of performance degradation and restoration during sleep restriction and "
                "subsequent recovery: a sleep dose-response study, Journal of Sleep Research 12 (2003), 1-12"
            ),
        ),
        Description(
            name="orthodont",
            title="Growth of a distance in the skull of 27 children, measured on X-rays every two years.",
            n_rows=108,
            columns={
                "distance": Column("number", "distance from the pituitary to the pterygomaxillary fissure", "mm"),
                "age": Column("integer", "age", "years"),
                "Sex": Column("label", "Female or Male"),
                "Subject": Column("label", "child (M01 to M16, F01 to F11)"),
            },
            formula="distance ~ age * Sex + (age | Subject)",
            source="R package nlme, data set Orthodont",
            citation=(
                "R. F. Potthoff and S. N. Roy, A generalized multivariate analysis of variance model useful especially "
                "for growth curve problems, Biometrika 51 (1964), 313-326"
            ),
        ),
        Description(
            name="dyestuff",
            title="Yield of five preparations of dyestuff from each of six batches of an intermediate product.",
            n_rows=30,
            columns={
                "Yield": Column("number", "yield of standard colour", "g"),
                "Batch": Column("label", "batch of the intermediate product"),
            },
            formula="Yield ~ 1 + (1 | Batch)",
            source="R package lme4, data set Dyestuff",
            citation=_DAVIES,
        ),
        Description(
            name="dyestuff2",
            title="Simulated data with the layout of dyestuff; the estimate of the variance between batches is 0.",
            n_rows=30,
            columns={
                "Yield": Column("number", "simulated response"),
                "Batch": Column("label", "batch"),
            },
            formula="Yield ~ 1 + (1 | Batch)",
            source="R package lme4, data set Dyestuff2",
            citation="G. E. P. Box and G. C. Tiao, Bayesian Inference in Statistical Analysis, Addison-Wesley, 1973",
        ),
        Description(
            name="oxboys",
            title="Heights of 26 boys from Oxford on nine occasions.",
            n_rows=234,
            columns={
                "height": Column("number", "height", "cm"),
                "age": Column("number", "age, standardised (centred and scaled)"),
                "Subject": Column("label", "boy"),
            },
            formula="height ~ age + (age | Subject)",
            source="R package nlme, data set Oxboys",
            citation="H. Goldstein, Multilevel Models in Educational and Social Research, Griffin, London, 1987",
        ),
        Description(
            name="machines",
            title="Productivity scores of six workers on three types of machine, three times on each.",
            n_rows=54,
            columns={
                "score": Column("number", "score of number and quality of the parts produced"),
                "Machine": Column("label", "type of machine"),
                "Worker": Column("label", "worker"),
            },
            formula="score ~ Machine + (0 + Machine | Worker)",
            source="R package nlme, data set Machines",
            citation=(
                "G. A. Milliken and D. E. Johnson, Analysis of Messy Data, Volume 1: Designed Experiments, Lifetime "
                "Learning Publications, Belmont, 1984; J. C. Pinheiro and D. M. Bates, Mixed-Effects Models in S and "
                "S-PLUS, Springer, New York, 2000"
            ),
        ),
        Description(
            name="cake",
            title="Angle at which chocolate cakes of three recipes break, baked at six temperatures (split plot).",
            n_rows=270,
            columns={
                "angle": Column("number", "breaking angle", "degrees"),
                "recipe": Column("label", "recipe"),
                "temperature": Column("label", "oven temperature in degrees Fahrenheit, as a label"),
                "replicate": Column("label", "mix of batter (numbered within each recipe)"),
            },
            formula="angle ~ recipe * temperature + (1 | recipe:replicate)",
            source="R package lme4, data set cake",
            citation=(
                "F. E. Cook, Chocolate cake: I. Optimum baking temperature, master's thesis, Iowa State College, 1938; "
                "W. G. Cochran and G. M. Cox, Experimental Designs, 2nd ed., Wiley, New York, 1957"
            ),
        ),
        Description(
            name="pastes",
            title="Strength of a chemical paste: two analyses of each of three casks from each of ten deliveries.",
            n_rows=60,
            columns={
                "strength": Column("number", "paste strength"),
                "batch": Column("label", "delivery batch"),
                "cask": Column("label", "cask (a, b or c within each batch)"),
            },
            formula="strength ~ 1 + (1 | batch/cask)",
            source="R package lme4, data set Pastes",
            citation=_DAVIES,
        ),
        Description(
            name="penicillin",
            title="Diameter of the zone of inhibition: six samples of penicillin on each of 24 plates (crossed).",
            n_rows=144,
            columns={
                "diameter": Column("number", "diameter of the zone of inhibition", "mm"),
                "plate": Column("label", "assay plate"),
                "sample": Column("label", "penicillin sample"),
            },
            formula="diameter ~ 1 + (1 | plate) + (1 | sample)",
            source="R package lme4, data set Penicillin",
            citation=_DAVIES,
        ),
        Description(
            name="fev",
            title="Lung function of 200 patients at four visits of a simulated trial, with visits missed.",
            n_rows=800,
            columns={
                "USUBJID": Column("label", "patient"),
                "AVISIT": Column("label", "visit, VIS1 to VIS4"),
                "ARMCD": Column("label", "PBO (placebo) or TRT (treatment)"),
                "RACE": Column("label", "three groups"),
                "SEX": Column("label", "Female or Male"),
                "FEV1_BL": Column(
                    "number", "forced expired volume in one second at baseline, of the expected one", "%"
                ),
                "FEV1": Column("number", "the same at the visit; missing where the visit was missed", "%"),
                "WEIGHT": Column("number", "weight of the observation"),
                "VISITN": Column("integer", "number of the visit"),
                "VISITN2": Column("number", "another coordinate of the visit, at random"),
            },
            formula="FEV1 ~ RACE + SEX + ARMCD * AVISIT + us(AVISIT | USUBJID)",
            source="R package mmrm 0.3.18, data set fev_data (Apache License 2.0, openpharma), unchanged",
            citation="D. Sabanes Bove et al., mmrm: Mixed Models for Repeated Measures, R package (2022-2025)",
        ),
    )
}


def names() -> list[str]:
    """Names of the data sets.

    Returns
    -------
    list of str
        In alphabetical order.

    Examples
    --------
    >>> names()[-1]
    'sleepstudy'
    """
    return sorted(_DESCRIPTIONS)


@checked
def describe(name: str) -> Description:
    """What a data set holds, in which units, and who published it.

    Parameters
    ----------
    name
        One of `names`.

    Returns
    -------
    Description
        Printing it gives a readable page.

    Raises
    ------
    LMMError
        If there is no data set of that name.

    Examples
    --------
    >>> describe("sleepstudy").columns["Reaction"].unit
    'ms'
    """
    try:
        return _DESCRIPTIONS[name]
    except KeyError:
        raise LMMError(f"name={name!r}: there is no such data set; choose one of {', '.join(names())}") from None


def _read(name: str) -> dict[str, NDArray[Any]]:
    kinds = {column: about.kind for column, about in describe(name).columns.items()}
    return parse_csv(files(__name__).joinpath(f"{name}.csv").read_text(encoding="utf-8"), kinds)


@overload
def load(name: str, frame: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
@overload
def load(name: str, frame: Literal["polars"]) -> pl.DataFrame: ...
@overload
def load(name: str, frame: Literal["pyarrow"]) -> Any: ...
@overload
def load(name: str, frame: Literal["dict"]) -> dict[str, NDArray[Any]]: ...
@checked
def load(name: str, frame: FrameKind = "pandas") -> Any:
    """Load a data set.

    Parameters
    ----------
    name
        One of `names`.
    frame
        What to return: ``"pandas"``, ``"polars"``, ``"pyarrow"`` (a table) or ``"dict"`` (column name to array).

    Returns
    -------
    pandas.DataFrame, polars.DataFrame, pyarrow.Table or dict of numpy.ndarray
        Labels are strings, whole numbers int64 and other numbers float64, in the order of the rows of the file.

    Raises
    ------
    LMMError
        If there is no data set of that name or no such kind of frame.

    Examples
    --------
    >>> load("sleepstudy", frame="dict")["Subject"][:2].tolist()
    ['308', '308']
    """
    if frame not in ("pandas", "polars", "pyarrow", "dict"):
        raise LMMError(f"frame={frame!r} is not known; choose 'pandas', 'polars', 'pyarrow' or 'dict'")
    data = _read(name)
    if frame == "dict":
        return data
    # labels as lists of str: not every library makes plain strings of a fixed-width array
    columns: dict[str, Any] = {k: v.tolist() if v.dtype.kind == "U" else v for k, v in data.items()}
    if frame == "pandas":
        import pandas as pd

        return pd.DataFrame(columns)
    if frame == "polars":
        import polars as pl

        return pl.DataFrame(columns)
    return import_module("pyarrow").table(columns)  # a module without type information
