"""Arguments of public functions: names that are known, and values of the type that the annotation states.

A user who writes ``fit(reml="ML")`` or ``predict(subjects=...)`` learns of it at the call, from the function that was
called.  What an annotation cannot say (ranges, shapes, names of columns) is checked where it is used.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np

from ..errors import LMMError

__all__ = ["checked", "near", "outside"]

T = TypeVar("T")
Check = Callable[[Any], bool]

_FREE = frozenset({"Any", "ArrayLike", "Array", "Index", "NDArray", "ndarray", "object", "Self", "TypeVar"})
"""Annotations that say nothing that could be checked here."""


_GENERIC, _SCALARS = np.generic, (np.integer, np.floating, np.bool_)

_HERE = str(Path(__file__).parents[1])

_OURS = {
    "Fit": "LMMResult", "Model": "LinearMixedModel", "BatchFit": "BatchResult", "LMMResult": "LMMResult",
    "LinearMixedModel": "LinearMixedModel", "BatchResult": "BatchResult",
    "Plan": "Plan", "PowerCurve": "PowerCurve", "PowerGrid": "PowerGrid",
    "BootstrapResult": "BootstrapResult", "Influence": "Influence",
}  # fmt: skip
"""Classes of this package that signatures name without importing them, and what users know them as."""


def near(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: those close to it, or all."""
    names = list(known)
    lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(lower[other]) for other in close)}?"
    return f"use {', '.join(map(repr, names))}" if names else "it takes none"


def checked(target: T) -> T:
    """Check the arguments of a function, or of the public methods of a class, at each call.

    Raises (the decorated function)
    -------------------------------
    LMMError
        For a value of another type than the annotation of its parameter states.
    TypeError
        For an unknown keyword, with the names that are near it.
    """
    if not isinstance(target, type):
        return cast("T", _checked(target, getattr(target, "__name__", "function"), 0))
    private = any(field.startswith("_") for field in getattr(target, "__dataclass_fields__", ()))
    made = ("__init__",) if private else ()  # results are made by this package
    for name, member in list(vars(target).items()):
        if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")) and name not in made:
            shown = target.__name__ if name == "__init__" else name
            setattr(target, name, _checked(member, shown, 1))
    return target


def outside() -> int:
    """The `stacklevel` of a warning that is to name the line outside this package from which it was called."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    return level


def _checked(function: Any, name: str, bound: int) -> Any:
    """The function with its checks; `bound` counts the arguments that Python gives it (self)."""
    parameters: dict[str, Check | None] = {}
    positional: list[str] = []
    in_order: list[Check | None] = []
    open_ended = any_number = False

    def read() -> None:
        nonlocal open_ended, any_number
        listed = list(inspect.signature(function).parameters.values())[bound:]
        for parameter in listed:
            if parameter.kind is parameter.VAR_KEYWORD:
                open_ended = True
            elif parameter.kind is parameter.VAR_POSITIONAL:
                any_number = True
            else:
                parameters[parameter.name] = _check_of(parameter.annotation, function.__globals__)
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    positional.append(parameter.name)
                    in_order.append(parameters[parameter.name])

    def look(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not parameters:
            read()
        if len(arguments) > len(positional) and not any_number:
            order = ", ".join([*positional, *(f"{key}=" for key in parameters if key not in positional)])
            count = f"{len(positional)} argument{'s' * (len(positional) != 1)} by place"
            raise TypeError(
                f"{name}() takes {count}, not {len(arguments)}" + (f"; write {name}({order})" if order else "")
            )
        given = [*zip(positional, arguments, strict=False), *keywords.items()]
        for argument, value in given:
            if argument not in parameters:
                if not open_ended:
                    from . import hints

                    hint = hints.argument(name, argument) or near(argument, parameters)
                    raise TypeError(f"{name}() has no argument {argument!r}: {hint}")
                continue
            check = parameters[argument]
            if check is not None and not check(value):
                if argument in positional[:1] and len(positional) > 1 and len(arguments) > 1 and check(arguments[1]):
                    order = ", ".join(positional[:2])
                    raise LMMError(f"{name}(): {argument} and {positional[1]} are swapped; write {name}({order})")
                raise LMMError(f"{name}(): {argument} must be {_wanted(function, argument)}, not {_shown(value)}")

    def plain(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        """Whether nothing has to be said or done about the arguments."""
        count = len(arguments) - bound
        if count > len(in_order):
            return False
        for i in range(count):
            value, check = arguments[bound + i], in_order[i]
            if isinstance(value, _GENERIC) or (check is not None and not check(value)):
                return False
        for argument, value in keywords.items():
            if argument not in parameters or isinstance(value, _GENERIC):
                return False
            check = parameters[argument]
            if check is not None and not check(value):
                return False
        return True

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if (keywords or len(arguments) > bound) and not (parameters and plain(arguments, keywords)):
            # the widths of numpy's scalars would spread to what is computed with them
            arguments = tuple(value.item() if isinstance(value, _SCALARS) else value for value in arguments)
            keywords = {key: value.item() if isinstance(value, _SCALARS) else value for key, value in keywords.items()}
            look(arguments[bound:], keywords)
        return function(*arguments, **keywords)

    return call


def _shown(value: Any) -> str:
    """A value for a message, short."""
    kind = type(value).__name__
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} binary digits"
    text = repr(value) if isinstance(value, (str, int, float, bool, list, tuple, dict)) else ""
    return f"{text} of type {kind!r}" if 0 < len(text) <= 40 else f"of type {kind!r}"


# ---- annotations -------------------------------------------------------------------------------------


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_float(value: Any) -> bool:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    return isinstance(value, (int, float, np.integer, np.floating)) and not _is_bool(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping_of_names(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


_ATOMS: dict[str, tuple[Check, str]] = {
    "bool": (_is_bool, "True or False"),
    "int": (_is_int, "an integer"),
    "float": (_is_float, "a number"),
    "str": (_is_text, "a string"),
    "PathLike": (lambda value: isinstance(value, os.PathLike), "a path"),
    "None": (lambda value: value is None, "None"),
    "Callable": (callable, "a function"),
    "Mapping": (lambda value: isinstance(value, Mapping), "a mapping"),
    "dict": (_is_mapping_of_names, "a dict with strings as keys"),
    "Ddf": (_is_text, "a string"),
    "Information": (_is_text, "a string"),
    "Vcov": (_is_text, "a string"),
}


def _wanted(function: Any, argument: str) -> str:
    """The type of a parameter in words."""
    annotation = inspect.signature(function).parameters[argument].annotation
    return " or ".join(words for _, words in _alternatives(annotation, function.__globals__) or [])


def _check_of(annotation: Any, names: Mapping[str, Any]) -> Check | None:
    """What a value must satisfy, None where the annotation does not tell."""
    found = _alternatives(annotation, names)
    if found is None:
        return None
    checks = tuple(check for check, _ in found)
    if len(checks) == 1:
        return checks[0]
    if len(checks) == 2:
        first, second = checks
        return lambda value: first(value) or second(value)
    return lambda value: any(check(value) for check in checks)


def _alternatives(annotation: Any, names: Mapping[str, Any]) -> list[tuple[Check, str]] | None:
    """Checks and words of each type of a union."""
    if annotation is inspect.Parameter.empty:
        return None
    if not isinstance(annotation, str):
        annotation = "None" if annotation is None else getattr(annotation, "__name__", None) or str(annotation)
    return _parsed(ast.parse(annotation, mode="eval").body, names)


def _parsed(node: ast.expr, names: Mapping[str, Any]) -> list[tuple[Check, str]] | None:
    if isinstance(node, ast.BinOp):
        left, right = _parsed(node.left, names), _parsed(node.right, names)
        return None if left is None or right is None else [*left, *right]
    if isinstance(node, ast.Constant):
        return [_ATOMS["None"]] if node.value is None else None
    if isinstance(node, ast.Subscript):
        return _generic(node, names)
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return _named(name, names)


def _named(name: str, names: Mapping[str, Any]) -> list[tuple[Check, str]] | None:
    if name in _ATOMS:
        return [_ATOMS[name]]
    if name in _FREE or not name:
        return None
    known = names.get(name)
    choices = get_args(known)
    if choices and all(isinstance(choice, str) for choice in choices):
        return [_one_of(choices)]
    if known is not None and not isinstance(known, type):
        return _aliased(known)
    if getattr(known, "_is_protocol", False):
        return [_offering(tuple(member for member in vars(known) if not member.startswith("_")))]
    if known is None and name not in _OURS:
        return None
    return [_instance(name, known)]


def _offering(members: tuple[str, ...]) -> tuple[Check, str]:
    """What a protocol asks for."""
    return (lambda value: all(hasattr(value, member) for member in members)), f"an object with {', '.join(members)}"


def _instance(name: str, known: type | None = None) -> tuple[Check, str]:
    """Classes are known by name where they are imported for types only."""

    def check(value: Any) -> bool:
        if known is not None and isinstance(value, known):
            return True
        return any(kind.__name__ == name for kind in type(value).__mro__)

    shown = _OURS.get(name, name)
    return check, f"{_article(shown)} {shown}"


def _aliased(known: Any) -> list[tuple[Check, str]] | None:
    """An alias that brings its own check with it: a union of types."""
    found: list[tuple[Check, str]] = []
    for part in get_args(known):
        if part is type(None):
            found.append(_ATOMS["None"])
        elif isinstance(part, type) and part.__name__ in _ATOMS:
            found.append(_ATOMS[part.__name__])
        elif isinstance(part, type):
            found.append(_instance(part.__name__))
        else:
            return None
    return found or None


def _generic(node: ast.Subscript, names: Mapping[str, Any]) -> list[tuple[Check, str]] | None:
    base = node.value
    name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
    if name == "Literal":
        return [
            _one_of(
                ast.literal_eval(node.slice) if isinstance(node.slice, ast.Tuple) else (ast.literal_eval(node.slice),)
            )
        ]
    if name in ("Sequence", "list", "tuple", "Iterable", "Collection"):
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        return _listed(_parsed(inner, names))
    return _named(name, names)


def _listed(inner: list[tuple[Check, str]] | None) -> list[tuple[Check, str]]:
    """Several values of one kind, in a list, tuple, array, index or series; a string is one value."""

    def check(value: Any) -> bool:
        if isinstance(value, (str, bytes, Mapping, np.generic)) or getattr(value, "ndim", 1) == 0:
            return False
        if not (isinstance(value, Sequence) or hasattr(value, "__array__")) or not hasattr(value, "__iter__"):
            return False
        return inner is None or all(any(fits(item) for fits, _ in inner) for item in value)

    words = "a list" if inner is None else f"a list of {' or '.join(_plural(words) for _, words in inner)}"
    return [(check, words)]


def _one_of(choices: Sequence[Any]) -> tuple[Check, str]:
    """Options are compared where they are used, which knows the remedy; here only whether they can be compared."""

    def check(value: Any) -> bool:
        try:
            return bool(value in choices) or hash(value) is not None
        except Exception:  # arrays, lists, and whatever else does not say yes or no
            return False

    return check, " or ".join(map(repr, choices))


def _plural(words: str) -> str:
    return {"a string": "strings", "a number": "numbers", "an integer": "integers"}.get(words, words)


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOU" or name.startswith("LMM") else "a"
