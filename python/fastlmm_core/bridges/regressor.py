"""Mixed models in scikit-learn's contract, which is one of names: nothing of it is imported before it asks."""

from __future__ import annotations

import inspect
import re
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import LMMError
from ..formula.response_scale import back_transform
from ..model import lmm
from ..support.arguments import outside
from ..tables.columns import Table
from ..tables.lazy import collected
from ..tables.rows import rows_of_table, with_columns

if TYPE_CHECKING:
    from ..result import LMMResult

__all__ = ["MixedLMRegressor"]

_NAME = re.compile(r"[^\W\d]\w*|`[^`]+`")


class MixedLMRegressor:
    """A mixed model as an estimator of scikit-learn: for cross-validation, pipelines and searches.

    X is a table that has the grouping columns; arrays have the columns ``x0``, ``x1``, ....  Groups that were not in
    the data of the fit are predicted at the population, so that ``GroupKFold`` over the groups tells how well new
    groups are predicted, and ``KFold`` new rows of the same groups.

    Parameters
    ----------
    formula : str
        As for `lmm`: ``"y ~ x + (x | g)"``; the left side may be missing, ``"~ x + (x | g)"``.
    reml : bool
    effects : {"all", "population"}
        Whether predictions for known groups have their random effects.
    residual, variance : str, optional
        As for `lmm`.

    Attributes
    ----------
    result_ : LMMResult
        The fit, with all that it knows.
    n_features_in_ : int
    feature_names_in_ : array of str
        Columns of X, where it is a table.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> sleep = flc.datasets.load("sleepstudy")
    >>> model = flc.MixedLMRegressor("Reaction ~ Days + (Days | Subject)").fit(sleep, sleep["Reaction"])
    >>> new = sleep.head(2).assign(Subject=["308", "nobody"], Days=[10, 10])
    >>> model.predict(new).round(1)
    array([450.3, 356.1])
    """

    def __init__(
        self, formula: str = "~ 1", reml: bool = True, effects: Literal["all", "population"] = "all",
        residual: str | None = None, variance: str | None = None,
    ) -> None:  # fmt: skip
        self.formula = formula
        self.reml = reml
        self.effects = effects
        self.residual = residual
        self.variance = variance

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; `deep` makes no difference."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **params: Any) -> MixedLMRegressor:
        """Set parameters by name.

        Raises
        ------
        ValueError
            For a name that is none of a parameter.
        """
        for name, value in params.items():
            if name not in PARAMETERS:
                raise ValueError(f"{name!r} is not a parameter; the parameters are {', '.join(PARAMETERS)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = {name: value for name, value in self.get_params().items() if value != PARAMETERS[name]}
        return f"MixedLMRegressor({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def __sklearn_tags__(self) -> Any:
        utils = import_module("sklearn.utils")
        return utils.Tags(
            estimator_type="regressor", target_tags=utils.TargetTags(required=True),
            regressor_tags=utils.RegressorTags(),
        )  # fmt: skip

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "result_")

    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> MixedLMRegressor:
        """Fit the model.

        Parameters
        ----------
        X : table or (n, p) array
        y : (n,) array, optional
            The response; by default the column of X that the formula names.
        sample_weight : (n,) array, optional
            The residual variance is sigma^2 / weight; rows of weight 0 are left out.

        Returns
        -------
        MixedLMRegressor
            Itself.

        Raises
        ------
        LMMError
            For a formula without a response where there is no y, and as `lmm`.
        """
        if not isinstance(self.formula, str):
            raise LMMError(f"formula={self.formula!r} must be text: write '~ x + (x | g)', or 'y ~ x + (x | g)'")
        table, names = _table(X)
        left, tilde, right = self.formula.partition("~")
        response = left.strip()
        if not tilde:
            raise LMMError(f"formula={self.formula!r} has no '~': write '~ x + (x | g)', or 'y ~ x + (x | g)'")
        if y is None and not response:
            raise LMMError("y is missing: give it, or a formula that names the response among the columns of X")
        rows = Table(table, "X").n_rows
        if rows < 2:
            raise LMMError(f"n_samples={rows}: a mixed model needs several rows of several groups")
        if y is None and _NAME.fullmatch(response) and response.strip("`") not in names:
            raise LMMError(
                f"{type(self).__name__} requires y to be passed, but the target y is None, and X has no column "
                f"{response}"
            )
        if y is not None:
            column = response.strip("`") if _NAME.fullmatch(response) else "y" if not response else _only_name(response)
            table = with_columns(table, {column: _aligned(y)})
            response = response or "y"
        weights = None if sample_weight is None else np.asarray(sample_weight)
        if weights is not None and weights.shape == (rows,) and (weights == 0).any():
            if not weights.any():
                raise LMMError("sample_weight is zero for all rows: leave it out, or give weights above zero")
            table, weights = rows_of_table(table, np.flatnonzero(weights)), weights[weights != 0]
        model = lmm(
            f"{response} ~{right}", table, weights=weights, residual=self.residual, variance=self.variance
        )  # fmt: skip
        self.result_: LMMResult = model.fit(reml=self.reml)
        self.n_features_in_ = len(names)
        if _is_table(X):
            self.feature_names_in_ = np.array(names, dtype=object)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted values of y (n,): with the effects of known groups, those of others at the population.

        They are means, and medians where the formula has ``log(y)``, log2, log10, log1p or sqrt for y.

        Raises
        ------
        LMMError
            Before a fit, for columns that are missing, an array of other columns than those of the fit, and responses
            that are another function of y.
        """
        if not hasattr(self, "result_"):
            raise _not_fitted(f"this {type(self).__name__} is not fitted yet: call fit(X, y) first")
        table, names = _table(X)
        if not _is_table(X) and len(names) != self.n_features_in_:
            raise LMMError(
                f"X has {len(names)} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input"
            )
        written = self.result_.model.response_name
        plain = _NAME.fullmatch(written) or f"`{written}`" in self.formula
        if not plain and back_transform(written) is None:
            raise LMMError(
                f"the response {written!r} is a function of y that cannot be undone: write it as log(y), log2, log10, "
                "np.log1p or np.sqrt, or use scikit-learn's TransformedTargetRegressor"
            )
        found = self.result_.predict(table, self.effects, "population", transform="none" if plain else "response")
        return np.asarray(found, dtype=np.float64)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """R^2 of the predictions: 1 less their mean squared error over the variance of y, both weighted.

        Parameters
        ----------
        X : table or array
        y : (n,) array
        sample_weight : (n,) array, optional
        """
        observed = np.asarray(_aligned(y), dtype=np.float64)
        w = np.ones(len(observed)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        rest, total = observed - self.predict(X), observed - np.average(observed, weights=w)
        return float(1.0 - (w @ rest**2) / (w @ total**2))


PARAMETERS: dict[str, Any] = {
    name: parameter.default for name, parameter in inspect.signature(MixedLMRegressor).parameters.items()
}
"""Names and defaults."""


def _not_fitted(message: str) -> Exception:
    """scikit-learn's error where it is installed."""
    try:
        found: Exception = import_module("sklearn.exceptions").NotFittedError(message)
    except ImportError:
        return LMMError(message)
    return found


def _conversion_warning() -> type[Warning]:
    """scikit-learn's warning where it is installed."""
    try:
        found: type[Warning] = import_module("sklearn.exceptions").DataConversionWarning
    except ImportError:
        return UserWarning
    return found


def _is_table(X: Any) -> bool:
    bare = hasattr(X, "__array__") and not hasattr(X, "columns")
    return not (isinstance(X, (np.ndarray, list, tuple)) or bare or hasattr(X, "toarray"))


def _table(X: Any) -> tuple[Any, list[str]]:
    """X as a table, and the names of its columns."""
    if _is_table(X):
        table = collected(X)
        return table, Table(table, "X").names
    if hasattr(X, "toarray"):
        raise LMMError("X is sparse: sparse input is not supported; give X.toarray(), or a table")
    values = np.asarray(X)
    if values.ndim != 2:
        raise LMMError(
            f"X has {values.ndim} dimensions; give a table, or an array (n, p). Reshape your data: X.reshape(-1, 1) is "
            "one column, X.reshape(1, -1) one row"
        )
    if np.iscomplexobj(values):
        raise LMMError("Complex data not supported: X holds complex numbers; give real parts, or moduli")
    if not values.shape[1]:
        raise LMMError(f"0 feature(s) (shape={values.shape}) while a minimum of 1 is required: X has no columns")
    names = [f"x{j}" for j in range(values.shape[1])]
    return dict(zip(names, values.T, strict=True)), names


def _aligned(y: Any) -> NDArray[Any]:
    values = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y)
    if values.ndim != 2 or values.shape[1] != 1:
        return values
    said = "A column-vector y was passed when a 1d array was expected: it is taken as y.ravel()"
    warnings.warn(said, _conversion_warning(), outside())
    return values.ravel()


def _only_name(response: str) -> str:
    """The column that a transformed response is made of."""
    from ..formula.syntax import side_of

    names = [name for name, optional in side_of(response, "the response", False).names if not optional]
    if len(names) != 1:
        raise LMMError(f"the response {response!r} is made of {len(names)} columns: leave y out and give them in X")
    return names[0]
