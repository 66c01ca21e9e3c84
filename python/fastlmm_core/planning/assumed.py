"""A design with stated parameters: simulation before there are data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..batch_result import BatchResult
from ..errors import LMMError
from ..estimation.model import Model
from ..formula.specification import FormulaSpec
from ..model import lmm
from ..result import LMMResult
from ..simulation.draws import simulate, simulate_into
from ..support.arguments import checked
from ..support.checks import number_array

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from ..support.seeds import Seed

__all__ = ["AssumedModel", "assume", "drawn", "stated"]

Array = NDArray[np.float64]


@checked
class AssumedModel:
    """A design with stated parameters: what simulation needs, without any data.  Made by `assume`.

    Attributes
    ----------
    model : LinearMixedModel
        The design.  Its response is one draw from the stated parameters and serves for nothing else.
    beta : (p,) array
        Fixed effects.
    relative_factor : (q, q) array
        Lambda in natural units: the random effects have covariance sigma2 Lambda Lambda'.
    sigma2 : float
    """

    def __init__(self, model: Model, params: Array, factor: Array, sigma2: float) -> None:
        self.model = model
        self.sigma2 = sigma2
        self.beta = params
        self.relative_factor = factor

    @property
    def params(self) -> dict[str, float]:
        """Fixed effects by name."""
        return dict(zip(self.model.exog_names, self.beta.tolist(), strict=True))

    @property
    def marginal_mean(self) -> Array:
        """X beta plus offset (nobs,)."""
        mean = np.asarray(self.model.exog @ self.beta)
        return mean if self.model.offset is None else mean + self.model.offset

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrix of the random effects in natural units, by term."""
        whole = self.sigma2 * (self.relative_factor @ self.relative_factor.T)
        blocks = zip(self.model.term_names, self.model.structure.blocks, strict=True)
        return {name: whole[block.start : block.stop, block.start : block.stop] for name, block in blocks}

    def simulate(self, n: int = 1, seed: Seed = None, first: int = 0) -> Array:
        """Responses with new random effects and errors (n, nobs); see `LMMResult.simulate`."""
        return simulate(self, n, seed, first)

    def simulate_fit(
        self,
        n: int,
        seed: Seed = None,
        *,
        reml: bool = True,
        n_jobs: int | None = None,
        progress: bool | None = None,
        fit: Model | None = None,
        first: int = 0,
    ) -> BatchResult:
        """Draw n responses and fit each, without storing the responses; see `LMMResult.simulate_fit`."""
        return simulate_into(
            BatchResult, self, n, seed, reml=reml, n_jobs=n_jobs, progress=progress, fit=fit, kind=LMMResult,
            first=first,
        )  # fmt: skip

    def __repr__(self) -> str:
        stated = ", ".join(f"{name}={value:g}" for name, value in self.params.items())
        return f"<AssumedModel: {stated}; {self.model!r}>"


@checked
def assume(
    formula: str, data: Any, params: Mapping[str, float] | ArrayLike, G: Any, sigma2: float, *,
    weights: Any = None, offset: Any = None,
) -> AssumedModel:  # fmt: skip
    """State a model before there are data.

    Parameters
    ----------
    formula : str
        As for `lmm`.
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table or dict of arrays
        The design: one row per planned observation.  The response may be absent; where present it is ignored.
        Rows with missing values in other columns are left out, as in `lmm`.
    params : mapping of coefficient name to value, or (p,) array
        Fixed effects on the scale of the response, all of them.
    G : (q, q) array, or mapping of term to array
        Covariance matrix of the random effects of a group (a number for a single one), positive semidefinite.
    sigma2 : float
        Residual variance (of an observation of weight 1).
    weights, offset : str or array, optional
        As for `lmm`.

    Returns
    -------
    AssumedModel

    Raises
    ------
    LMMError
        For parameters that do not fit the design, or a design that could not be fitted.
    """
    from ..formula.syntax import parse
    from ..tables.columns import Table

    response = parse(formula).response
    name = response.label.replace("`", "")
    table = Table(data)
    # any left side, log(y) too, becomes a column of its own
    formula = f"`{name}`{formula.lstrip()[len(response.text) :]}"
    if table.library == "dict":
        columns = dict(data)
    else:
        columns = {key: table.column(key).raw for key in table.names if key in table}
    columns[name] = np.random.default_rng(0).standard_normal(table.n_rows)
    model = lmm(formula, columns, weights=weights, offset=offset)
    assert isinstance(model.spec, FormulaSpec)
    spec = dataclasses.replace(model.spec, library=table.library)
    model = model.of(dataclasses.replace(model.design, spec=spec), model.endog)
    if len(model.problem.kept) < len(model.exog_names):
        lost = [key for i, key in enumerate(model.exog_names) if i not in model.problem.kept]
        raise LMMError(
            f"data: the columns {', '.join(map(repr, lost))} are combinations of those before them, so that their "
            "coefficients have no meaning of their own; change the formula or the design"
        )
    variance = number_array(sigma2, "sigma2")
    if variance.ndim or not variance > 0.0:
        raise LMMError(f"sigma2={sigma2!r} must be a positive number: the residual variance")
    factor = _factor_of(G, model.structure, model.term_names) / np.sqrt(variance)
    return drawn(model, _coefficients(params, model.exog_names), factor, float(variance))


def _coefficients(params: Any, names: tuple[str, ...]) -> Array:
    if hasattr(params, "keys"):
        given = dict(params)
        for name in given:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the coefficients are {', '.join(map(repr, names))}"
                raise LMMError(f"params names {name!r}, which is not a coefficient of this design; {hint}")
        absent = [name for name in names if name not in given]
        if absent:
            raise LMMError(f"params gives no value for {', '.join(map(repr, absent))}; state every coefficient")
        params = [given[name] for name in names]
    values = number_array(params, "params")
    if values.shape != (len(names),):
        raise LMMError(f"params must hold {len(names)} values, for {', '.join(map(repr, names))}, not {values.size}")
    return values


def _factor_of(G: Any, structure: CovarianceStructure, terms: tuple[str, ...]) -> Array:
    """Lower triangular L with L L' = G, which is checked against the structure."""
    q = structure.q
    places = {name: slice(block.start, block.stop) for name, block in zip(terms, structure.blocks, strict=True)}
    if hasattr(G, "keys"):
        if set(G) != set(places):
            raise LMMError(f"G has the terms {', '.join(map(repr, G))}; this design has {', '.join(map(repr, places))}")
        whole = np.zeros((q, q))
        for name, place in places.items():
            part, size = np.atleast_2d(number_array(G[name], f"G[{name!r}]")), place.stop - place.start
            if part.shape != (size, size):
                raise LMMError(f"G[{name!r}] must be a ({size}, {size}) matrix, not of shape {part.shape}")
            whole[place, place] = part
    else:
        whole = np.atleast_2d(number_array(G, "G"))
    if whole.shape != (q, q):
        raise LMMError(f"G must be a ({q}, {q}) matrix, one row per random effect, not of shape {whole.shape}")
    sd = np.sqrt(np.maximum(np.diag(whole), 0.0))
    # on the scale of correlations units do not matter
    unit = np.where(sd > 0.0, sd, 1.0)
    corr = whole / np.outer(unit, unit)
    if np.abs(corr - corr.T).max() > 1e-8:
        raise LMMError("G is not symmetric")
    if (np.diag(whole) < 0.0).any() or np.linalg.eigvalsh(corr).min() < -1e-8:
        raise LMMError("G is not positive semidefinite: check its variances, and that no correlation is beyond 1")
    free = np.zeros((q, q), dtype=bool)
    free[structure.positions] = True
    if corr[~(free | free.T)].any():
        raise LMMError("G has covariances between random effects that the formula makes independent; set them to 0")
    factor = np.zeros((q, q))
    for block in structure.blocks:
        place = slice(block.start, block.stop)
        values, vectors = np.linalg.eigh(corr[place, place])
        half = vectors * np.sqrt(np.maximum(values, 0.0)) if block.correlated else np.eye(len(values))
        factor[place, place] = sd[place, None] * half
    return structure.canonical(factor)


def drawn(model: Model, params: Array, factor: Array, sigma2: float) -> AssumedModel:
    """The design with a draw from the parameters as response: scales and starts are then those of the simulations."""
    y = AssumedModel(model, params, factor, sigma2).simulate(1, 0)[0]
    return AssumedModel(model.with_response(y), params, factor, sigma2)


def stated(source: Any) -> AssumedModel:
    """A fit as an assumed model."""
    from ..estimation.fit import Fit

    if isinstance(source, AssumedModel):
        return source
    if isinstance(source, Fit):
        return AssumedModel(source.model, np.nan_to_num(source.beta), source.relative_factor, source.sigma2)
    raise LMMError(f"source must be a fitted model or one from assume(), not {type(source).__name__!r}")
