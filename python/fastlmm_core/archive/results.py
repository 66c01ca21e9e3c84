"""What is written of a result, and the result that is made from it.

Everything is in the caller's units, and nothing depends on how a problem is conditioned: a reader conditions the rows
anew and evaluates the criterion at the parameters of the file, without a search.  docs/file-format.md describes the
format, and has to be changed with it.
"""

from __future__ import annotations

import os
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import Block, CovarianceStructure
from ..design.design import Design
from ..design.grouping import Codes
from ..design.terms import RandomPart
from ..errors import LMMError
from ..estimation.restored import Estimates, Probes, restored
from ..estimation.stated import stated_fit
from ..formula.specification import FormulaSpec, Numbers
from ..formula.syntax import parse
from ..support.archives import read_archive, write_archive
from .residuals import plain_residual, residual_of
from .states import plain_state, state_of
from .values import packed, unpacked

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["FORMAT", "VERSION", "read", "write"]

Array = NDArray[Any]
F = TypeVar("F", bound="Fit")

FORMAT, VERSION = "fastlmm_core result", 1


# ---- writing -------------------------------------------------------------------------------------------------------


def write(result: Fit, path: str | os.PathLike[str]) -> None:
    """Write a result.

    Parameters
    ----------
    result : Fit
    path : str or path

    Raises
    ------
    LMMError
        For what the format does not have, or a file that cannot be written.
    """
    model, design = result.model, result.model.design
    if model.streamed:
        raise LMMError(
            "save() writes the rows, and those of this model were read in pieces and summed, not held; pickle the "
            "result, or keep the plan (a pickle) and its sums, plan.reduce(...).save(path)"
        )
    arrays: dict[str, Array] = {"exog": design.exog}
    for name, values in (("weights", design.weights), ("offset", design.offset), ("kept", design.kept)):
        if values is not None:
            arrays[name] = values
    if model.has_response:
        arrays["endog"] = model.endog
    shared = design.exog_re is design.exog or np.array_equal(design.exog_re, design.exog)
    if not shared:
        arrays["exog_re"] = design.exog_re
    document = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": f"fastlmm_core {metadata.version('fastlmm_core')}",
        "estimated": result.stated is None,
        "reml": result.reml,
        "given": model.given,
        "response": design.response_name,
        "exog_names": list(design.exog_names),
        "n_dropped": design.n_dropped,
        "padded": design.padded,
        "sigma": design.sigma,
        "exog_re_is_exog": shared,
        "random": _random(design, arrays),
        "residual": None if design.residual is None else plain_residual(design.residual, arrays),
        "formula": None if design.spec is None else _formula(design.spec),
        "index": _index(design.index),
        "parameters": _parameters(result, arrays),
    }
    write_archive(path, document, arrays)


def _random(design: Design, arrays: dict[str, Array]) -> dict[str, Any]:
    part = design.random
    labels = []
    for i, factor in enumerate(design.factors):
        arrays[f"codes_{i}"] = factor.grouping.index.astype(np.int32)
        own = factor.grouping.labels
        if own.dtype.kind in "OT":
            labels.append(packed(own, f"the labels of {factor.grouping.name!r}"))
        else:
            arrays[f"labels_{i}"] = own
            labels.append(None)
    return {
        "factors": [f.grouping.name for f in design.factors],
        "labels": labels,
        "spans": [[span.start, span.stop] for span in part.spans],
        "terms": [[block.start, block.stop, block.structure] for block in part.structure.blocks],
        "term_names": list(part.term_names),
        "columns": list(part.columns),
        "order": list(part.order),
    }


def _formula(spec: Any) -> dict[str, Any]:
    parsed = parse(spec.formula)
    sides = (parsed.response, parsed.fixed, *(bar.left for bar in parsed.bars))
    reference = {
        name: {"mean": packed(typical.mean, name), "low": packed(typical.low, name), "high": packed(typical.high, name)}
        if isinstance(typical, Numbers)
        else packed(tuple(typical), f"column {name!r}")
        for name, typical in spec.reference.items()
    }
    states = [plain_state(state, side) for state, side in zip(spec.states, sides, strict=True)]
    # what cannot be read is not written
    state_of(states[1], parsed.fixed, spec.reference)
    return {
        "text": spec.formula,
        "library": spec.library,
        "offset": spec.offset_name,
        "weights": spec.weights_name,
        "states": states,
        "integer_groups": sorted(spec.integer_groups),
        "reference": reference,
        "unused": packed(dict(spec.unused), "the formula"),
        "gaps": dict(spec.gaps),
    }


def _index(index: Any) -> Any:
    """Labels of the caller's rows: those of pandas' RangeIndex by their limits."""
    if index is None:
        return None
    if all(hasattr(index, name) for name in ("start", "stop", "step")):
        return {"range": [index.start, index.stop, index.step], "name": packed(index.name, "the name of the index")}
    return {
        "labels": packed(index.to_numpy(), "the index of the data"),
        "names": packed(list(index.names), "the index"),
    }


def _parameters(result: Fit, arrays: dict[str, Array]) -> dict[str, Any]:
    arrays["params"], arrays["factor"] = result.beta, result.relative_factor
    if result.model.design.residual is not None:
        arrays["phi"] = result.phi
    found: dict[str, Any] = {"sigma2": result.sigma2}
    if result.stated is not None:
        return found
    arrays["cov_params"] = result.cov
    optimum = result.optimum
    if optimum.restricted is not None:
        arrays["restricted"] = optimum.restricted
    drawn = optimum.monte_carlo
    if drawn is not None:
        found["probes"] = {"n": drawn.probes, "seed": drawn.seed, "parameters": drawn.parameters}
    return found | {
        "criterion": result.criterion,
        "converged": bool(optimum.converged),
        "singular": bool(optimum.singular),
        "gradient_norm": packed(float(optimum.gradient_norm), "the gradient"),
        "n_evaluations": int(optimum.n_evaluations),
        "method": optimum.method if isinstance(optimum.method, str) else "a function",
        "message": optimum.message,
        "other_minima": [[minimum.value, minimum.theta.tolist()] for minimum in result.optima[1:]],
    }


# ---- reading -------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], model_kind: type[Model], kind: type[F]) -> F:
    """The result that a file holds.

    Parameters
    ----------
    path : str or path
    model_kind, kind : types
        Of the model and of the result.

    Raises
    ------
    LMMError
        For files that are no results, damaged, or of a later version of the format.
    """
    document, arrays = read_archive(path)
    if document.get("format") != FORMAT:
        raise LMMError(f"path: {str(path)!r} is no result that save() has written")
    if not isinstance(document.get("version"), int) or document["version"] > VERSION:
        raise LMMError(
            f"path: {str(path)!r} has version {document.get('version')} of the format, written by "
            f"{document.get('written_by')}, and this library reads versions up to {VERSION}; update it"
        )
    try:
        return _result(document, arrays, model_kind, kind)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, LMMError):
            raise
        raise LMMError(f"path: {str(path)!r} is damaged: {error!r}") from error


def _result(document: dict[str, Any], arrays: dict[str, Array], model_kind: type[Model], kind: type[F]) -> F:
    exog = arrays["exog"]
    design = Design(
        exog,
        _random_part(document["random"], exog if document["exog_re_is_exog"] else arrays["exog_re"], arrays),
        tuple(document["exog_names"]),
        arrays.get("weights"),
        arrays.get("offset"),
        None if document["formula"] is None else _spec(document["formula"]),
        document["response"],
        document["n_dropped"],
        arrays.get("kept"),
        index=_pandas_index(document["index"]),
        residual=None if document["residual"] is None else residual_of(document["residual"], arrays),
        padded=document.get("padded", False),
        sigma=document.get("sigma"),
    )
    model = model_kind.of(design, arrays.get("endog"), document["given"])
    found = document["parameters"]
    if not document["estimated"]:
        return stated_fit(
            kind, model, arrays["params"], arrays["factor"], found["sigma2"], document["reml"], arrays.get("phi")
        )
    estimates = Estimates(
        factor=arrays["factor"],
        criterion=found["criterion"],
        converged=found["converged"],
        singular=found["singular"],
        gradient_norm=unpacked(found["gradient_norm"]),
        n_evaluations=found["n_evaluations"],
        method=found["method"],
        message=found["message"],
        others=tuple((value, np.array(theta)) for value, theta in found["other_minima"]),
        restricted=arrays.get("restricted"),
        phi=arrays.get("phi"),
        probes=None if "probes" not in found else Probes(**found["probes"]),
    )
    return restored(kind, model, document["reml"], estimates)


def _random_part(found: dict[str, Any], Z: Array, arrays: dict[str, Array]) -> RandomPart:
    codes = []
    for i, (name, labels) in enumerate(zip(found["factors"], found["labels"], strict=True)):
        own = arrays[f"labels_{i}"] if labels is None else unpacked(labels)
        codes.append(Codes(name, arrays[f"codes_{i}"].astype(np.int64), 0, len(own), own))
    return RandomPart(
        (Z,),
        tuple(codes),
        tuple(slice(*span) for span in found["spans"]),
        CovarianceStructure(tuple(Block(*term) for term in found["terms"])),
        tuple(found["columns"]),
        tuple(found["term_names"]),
        tuple(found["order"]),
    )


def _spec(found: dict[str, Any]) -> FormulaSpec:
    parsed = parse(found["text"])
    sides = (parsed.response, parsed.fixed, *(bar.left for bar in parsed.bars))
    reference = {
        name: Numbers(*(unpacked(typical[key]) for key in ("mean", "low", "high")))
        if "mean" in typical
        else unpacked(typical)
        for name, typical in found["reference"].items()
    }
    return FormulaSpec(
        found["text"],
        found["library"],
        found["offset"],
        found.get("weights"),
        tuple(
            state_of(state, side, reference if side is parsed.fixed else None)
            for state, side in zip(found["states"], sides, strict=True)
        ),
        frozenset(found["integer_groups"]),
        reference,
        unpacked(found["unused"]),
        found["gaps"],
    )


def _pandas_index(found: Any) -> Any:
    if found is None:
        return None
    pd = import_module("pandas")
    if "range" in found:
        return pd.RangeIndex(*found["range"], name=unpacked(found["name"]))
    names, labels = unpacked(found["names"]), unpacked(found["labels"])
    return pd.MultiIndex.from_tuples(labels, names=names) if len(names) > 1 else pd.Index(labels, name=names[0])
