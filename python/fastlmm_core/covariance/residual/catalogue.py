"""All residual structures by the names that users write.

A new structure is a file with a class, and a line here; so is what others have to know of it (`Kind`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

from ...errors import LMMError
from .antedependence import AnteDependence
from .autoregressive import Autoregressive
from .compound_symmetry import CompoundSymmetry
from .constant_power import ConstantPower
from .constant_proportion import ConstantProportion
from .correlation import Correlation
from .deviations import Common, OfPositions
from .distances import OfDistance
from .exponential import ContinuousAutoregressive, Exponential, Gaussian
from .factor_analytic import FactorAnalytic
from .independent import Independent
from .kronecker import Kronecker
from .matern import Matern32, Matern52
from .moving_average import AutoregressiveMovingAverage
from .nugget import Nugget
from .power_variance import ExponentialVariance, PowerVariance
from .rational import RationalQuadratic
from .scaled import Scaled
from .spherical import Spherical
from .structure import ResidualStructure
from .toeplitz import Toeplitz
from .unstructured import Unstructured
from .variance_function import VarianceFunction

__all__ = [
    "Kind",
    "coordinate_names",
    "factor_analytic",
    "kind_of",
    "of_coordinates",
    "of_covariate",
    "of_positions",
    "of_responses",
    "position_names",
    "variance_names",
]

_CORRELATIONS: dict[str, Callable[[int], Correlation]] = {
    "id": Independent,
    "cs": CompoundSymmetry,
    "ar1": Autoregressive,
    "ad": AnteDependence,
    "toep": Toeplitz,
    "arma": AutoregressiveMovingAverage,
}
_HETEROGENEOUS = {"diag": "id", "csh": "cs", "ar1h": "ar1", "adh": "ad", "toeph": "toep"}
_FEWEST = {"id": 1, "diag": 1, "us": 1, "arma": 3}
_OF_DISTANCE: dict[str, Callable[..., OfDistance]] = {
    "car1": ContinuousAutoregressive,
    "sp_exp": Exponential,
    "sp_power": partial(ContinuousAutoregressive, name="sp_power"),
    "sp_gau": Gaussian,
    "matern": Matern32,
    "matern52": partial(Matern52, name="matern52"),
    "ratio": RationalQuadratic,
    "spher": Spherical,
}
_OF_COVARIATE: dict[str, Callable[[float], VarianceFunction]] = {
    "power": lambda typical: PowerVariance(),
    "exp": lambda typical: ExponentialVariance(),
    "constpower": ConstantPower,
    "constprop": ConstantProportion,
}


class Kind(NamedTuple):
    """What is to be known of a structure where data are read and searches begin."""

    by_lag: bool = False
    """Whether integers are times, so that positions without rows count."""
    each_lag: bool = False
    """Whether each position, or lag, has a parameter of its own, so that every position has to be observed."""
    own_variances: bool = False
    """Whether each position has a variance of its own."""
    reproduces: bool = False
    """Whether the covariances of a position reproduce it where it has one row."""
    contains: Literal["", "intercept", "visits"] = ""
    """Random effects of subjects that it contains: an intercept, or any that depend on the visit only."""
    several_minima: bool = False
    """Whether the criterion has several minima at times, though rows have positions and there are no random effects."""
    one_coordinate: bool = False
    """Whether it takes one column of times."""


_KINDS = {
    "us": Kind(own_variances=True, reproduces=True, contains="visits"),
    "diag": Kind(own_variances=True),
    "cs": Kind(contains="intercept"),
    "csh": Kind(own_variances=True),
    "ar1": Kind(by_lag=True),
    "ar1h": Kind(each_lag=True, own_variances=True),
    "adh": Kind(own_variances=True),
    "toep": Kind(each_lag=True, contains="intercept"),
    "toeph": Kind(each_lag=True, own_variances=True),
    "arma": Kind(by_lag=True, several_minima=True),
    "fa": Kind(own_variances=True, reproduces=True, several_minima=True),
    "us@ar1": Kind(by_lag=True),
    "us@toep": Kind(each_lag=True),
    "car1": Kind(one_coordinate=True),
    "sp_power": Kind(one_coordinate=True),
}


def kind_of(name: str) -> Kind:
    """What is to be known of the structure of a name."""
    return _KINDS.get(name, Kind())


def position_names() -> tuple[str, ...]:
    """The names of all structures over positions."""
    return ("us", *_CORRELATIONS, *_HETEROGENEOUS)


def of_positions(name: str, m: int, factors: int | None = None) -> ResidualStructure:
    """The structure of a name over m positions.

    Parameters
    ----------
    name : str
    m : int
    factors : int, optional
        Of fa (by default 1) and fa0 (by default m).

    Raises
    ------
    LMMError
        For an unknown name, or for one position where there is nothing to correlate.
    """
    if name == "fa":
        return factor_analytic(m, 1 if factors is None else factors)
    if name == "fa0":
        return _factors_alone(m, m if factors is None else factors)
    if name not in position_names():
        raise LMMError(f"residual: there is no structure {name!r}; known are {', '.join(position_names())}.")
    least = _FEWEST.get(name, 2)
    if m < least:
        raise LMMError(f"residual: {name} needs {least} visits or more, and there {'is' if m == 1 else 'are'} {m}.")
    if name == "us":
        return Unstructured(m)
    if name in _HETEROGENEOUS:
        return Scaled(name, OfPositions(m), _CORRELATIONS[_HETEROGENEOUS[name]](m))
    return Scaled(name, Common(), _CORRELATIONS[name](m))


def coordinate_names() -> tuple[str, ...]:
    """The names of all structures over coordinates."""
    return tuple(_OF_DISTANCE)


def of_coordinates(
    name: str, closest: float = 1.0, farthest: float = 1.0, *, nugget: bool = False
) -> ResidualStructure:
    """The structure of a name over coordinates.

    Parameters
    ----------
    name : str
    closest, farthest : float
        Smallest and largest distance of two rows of a subject.
    nugget : bool
        With a share of the variance that no two rows have in common.
    """
    if name not in _OF_DISTANCE:
        raise LMMError(f"residual: there is no structure {name!r}; known are {', '.join(coordinate_names())}.")
    correlation: Correlation = _OF_DISTANCE[name](closest, farthest)
    return Scaled(name, Common(), Nugget(correlation) if nugget else correlation)


def _factors_alone(m: int, q: int) -> ResidualStructure:
    """The structure `fa0` of q factors over m positions, without variances of their own: of m factors it is `us`.

    Raises
    ------
    LMMError
        For fewer factors than positions, whose covariance is singular.
    """
    if q != m:
        raise LMMError(
            f"residual: fa0 with q={q} over {m} visits has a singular covariance, so that the rows of a subject "
            f"reproduce each other; take fa with q={min(q, m - 1)}, which has variances of its own, or q={m}, "
            "which is us"
        )
    return of_positions("us", m)


def factor_analytic(m: int, q: int) -> ResidualStructure:
    """The structure `fa` of q factors over m positions.

    Raises
    ------
    LMMError
        For more factors than the covariances determine.
    """
    free = m * q - q * (q - 1) // 2
    if q < 1 or free > m * (m - 1) // 2:
        most = max((k for k in range(m) if 2 * m * k - k * (k - 1) <= m * (m - 1)), default=0)
        raise LMMError(
            f"residual: fa with q={q} has more loadings than {m} visits determine; "
            + (f"take q={most} or fewer, or us." if most else "take us.")
        )
    return Scaled("fa", OfPositions(m), FactorAnalytic(m, q))


def of_responses(visits: str, responses: Sequence[str], m: int) -> ResidualStructure:
    """Unstructured over responses times a correlation over m visits, e.g. ``us@ar1``.

    Parameters
    ----------
    visits : str
        Name of the correlation.
    responses : sequence of str
        Labels of the responses.
    m : int
    """
    if visits not in _CORRELATIONS or visits == "id":
        known = ", ".join(f"us@{name}" for name in _CORRELATIONS if name != "id")
        raise LMMError(f"residual: there is no structure 'us@{visits}'; known are {known}.")
    if m < _FEWEST.get(visits, 2):
        raise LMMError(f"residual: us@{visits} needs {_FEWEST.get(visits, 2)} visits or more, and there are {m}.")
    return Kronecker(Unstructured(len(responses)), _CORRELATIONS[visits](m), tuple(responses))


def variance_names() -> tuple[str, ...]:
    """The names of all variance functions of one covariate."""
    return tuple(_OF_COVARIATE)


def of_covariate(name: str, typical: float = 1.0) -> VarianceFunction:
    """The variance function of a name.

    Parameters
    ----------
    name : str
    typical : float
        A typical size of the covariate.
    """
    if name not in _OF_COVARIATE:
        raise LMMError(
            f"variance: there is no function {name!r}; known are {', '.join(variance_names())}, and '~ formula'."
        )
    return _OF_COVARIATE[name](typical)
