"""Models as statsmodels' MixedLM states them: groups, re_formula and vc_formula."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import LMMError
from ..formula.syntax import signed_terms
from ..model import LinearMixedModel, lmm
from ..support.arguments import checked
from ..tables.columns import Table
from ..tables.lazy import collected
from ..tables.rows import with_columns

__all__ = ["from_statsmodels"]

_LEVELS = re.compile(r"C\(\s*(`[^`]+`|[^\W\d]\w*)\s*\)")
_GROUPS = "groups"


@checked
def from_statsmodels(
    formula: str, data: Any, *, groups: Any, re_formula: str | None = None, vc_formula: Mapping[str, str] | None = None
) -> LinearMixedModel:
    """The model of a specification for ``statsmodels.formula.api.mixedlm``.

    Parameters
    ----------
    formula : str
        Response and fixed part.
    data : table
    groups : str or array
        Name of the column of the groups, or the group of each row.
    re_formula : str, optional
        Correlated random effects of the groups, ``"~x"``; by default a random intercept, or with `vc_formula` none.
    vc_formula : mapping of name to formula, optional
        Independent effects within groups: ``"0 + C(h)"``, an effect of each level of h in each group; ``"0 + C(h):x"``,
        a slope of x for each; ``"0 + x"``, a slope of the group.

    Returns
    -------
    LinearMixedModel
        With the formula that `lmm` takes in ``model.spec.formula``; ``fit(reml=...)`` as there.

    Raises
    ------
    LMMError
        For other components, and as `lmm`.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> pastes = flc.datasets.load("pastes")
    >>> casks = {"cask": "0 + C(cask)"}
    >>> model = flc.from_statsmodels("strength ~ 1", pastes, groups="batch", re_formula="1", vc_formula=casks)
    >>> model.spec.formula
    'strength ~ 1 + (1 | batch) + (1 | batch:cask)'
    """
    data = collected(data)
    if isinstance(groups, str):
        name = groups
        single = len(np.unique(Table(data).column(groups).codes(None)[0])) == 1
    else:
        name = _GROUPS
        labels = np.asarray(groups)
        data, single = with_columns(data, {name: labels}), len(np.unique(labels)) == 1
    quoted = name if re.fullmatch(r"[^\W\d]\w*", name) else f"`{name}`"
    bars = []
    if re_formula is not None or vc_formula is None:
        if single:
            raise LMMError(f"groups={name!r} has one level: leave re_formula out, and state components in vc_formula")
        bars.append(f"({(re_formula or '1').replace('~', '', 1).strip()} | {quoted})")
    for component, text in (vc_formula or {}).items():
        bars.append(_bar(component, text, quoted, single))
    return lmm(" + ".join([formula, *bars]), data)


def _bar(component: str, text: str, groups: str, single: bool) -> str:
    """The random-effects term of a variance component; of one group alone the groups are left out."""
    written = signed_terms(text.replace("~", "", 1))
    terms = [term for sign, term in written if (sign, term) not in (("+", "0"), ("-", "1"))]
    refused = (
        f"vc_formula[{component!r}] = {text!r} is none of '0 + C(h)', '0 + C(h):x' and '0 + x'; write it as a term of "
        "lmm's formula"
    )
    if len(terms) != 1 or len(written) != 2:
        raise LMMError(refused)
    parts = [part.strip() for part in terms[0].split(":")]
    factors = [match[1] for part in parts if (match := _LEVELS.fullmatch(part))]
    slopes = [part for part in parts if not _LEVELS.fullmatch(part)]
    if any(re.search(r"\bC\(", part) for part in slopes) or (single and not factors):
        raise LMMError(refused)
    inside = f"0 + {':'.join(slopes)}" if slopes else "1"
    return f"({inside} | {':'.join([*([] if single else [groups]), *factors])})"
