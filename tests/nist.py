"""The one-way analysis of variance sets SmLs01 to SmLs09 of NIST's Statistical Reference Datasets.

They are generated data (S. D. Simon and J. P. Lesage, "Assessing the accuracy of ANOVA calculations in statistical
software", Computational Statistics & Data Analysis 8, 1990, 325-332): nine treatments with 21, 201 or 2001 values each
and 1, 7 or 13 constant leading digits. The first value of a treatment is its centre; the others are alternately 0.1
below and 0.1 above it. The centres are the base value (such as 1.4) once, and four times each 0.1 below and above it.

The decimals are rounded to float64 once, as a program that reads the file would. With 13 constant leading digits that
rounding changes the data in the fourth digit that matters, so that the certified values describe data that no program
sees. The truth here is therefore also computed in exact rational arithmetic from the floats as stored.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache

import numpy as np

BASES = {1: Decimal("1.4"), 7: Decimal("1000000.4"), 13: Decimal("1000000000000.4")}
REPLICATES = (21, 201, 2001)
NAMES = tuple(f"SmLs{k:02d}" for k in range(1, 10))
TREATMENTS = 9
STEP = Decimal("0.1")


@dataclass(frozen=True)
class OneWay:
    """A balanced one-way layout and its mean squares."""

    name: str
    digits: int  # constant leading digits
    m: int  # replicates per treatment
    y: np.ndarray
    groups: np.ndarray
    certified_msb: Fraction  # of the decimals
    certified_msw: Fraction
    msb: Fraction  # of the floats as stored
    msw: Fraction

    @property
    def sigma2(self) -> Fraction:
        """REML estimate of the residual variance (the between mean square is the larger one in all nine sets)."""
        return self.msw

    @property
    def tau2(self) -> Fraction:
        """REML estimate of the variance between treatments."""
        return (self.msb - self.msw) / self.m


def decimals(name: str) -> tuple[list[list[Decimal]], int]:
    """Values of each treatment as in the file, and the number of constant leading digits."""
    k = NAMES.index(name)
    digits, m = list(BASES)[k // 3], REPLICATES[k % 3]
    cells = []
    for t in range(TREATMENTS):
        centre = BASES[digits] + (STEP if t and t % 2 == 0 else -STEP if t else Decimal(0))
        cells.append([centre] + [centre + (STEP if j % 2 == 0 else -STEP) for j in range(1, m)])
    return cells, digits


def mean_squares(cells: list[list[Fraction]]) -> tuple[Fraction, Fraction]:
    """Between and within mean square of a balanced layout, exactly (values that repeat are counted, not summed)."""
    m = len(cells[0])
    counts = [Counter(cell) for cell in cells]
    means = [sum(v * c for v, c in count.items()) / m for count in counts]
    grand = sum(means) / len(means)
    between = m * sum((a - grand) ** 2 for a in means)
    within = sum(c * (v - a) ** 2 for count, a in zip(counts, means, strict=True) for v, c in count.items())
    return between / (len(cells) - 1), within / (len(cells) * (m - 1))


@cache
def load(name: str) -> OneWay:
    cells, digits = decimals(name)
    stored = [[float(v) for v in cell] for cell in cells]
    certified_msb, certified_msw = mean_squares([[Fraction(v) for v in cell] for cell in cells])
    msb, msw = mean_squares([[Fraction(v) for v in cell] for cell in stored])
    m = len(cells[0])
    return OneWay(
        name=name,
        digits=digits,
        m=m,
        y=np.array(stored).ravel(),
        groups=np.repeat(np.arange(1, TREATMENTS + 1), m),
        certified_msb=certified_msb,
        certified_msw=certified_msw,
        msb=msb,
        msw=msw,
    )


def log_relative_error(value: float, truth: Fraction | float) -> float:
    """Number of correct significant digits, at most 15."""
    error = abs(Fraction(float(value)) - Fraction(truth)) / abs(Fraction(truth))
    return 15.0 if error == 0 else min(15.0, -float(np.log10(float(error))))
