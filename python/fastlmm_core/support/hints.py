"""What to add to the refusal of a name or a value that does not exist here: the word for it, or those that are near."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn

from .words import ARGUMENTS, FORMULAS, LME4, OPTIONS, READING, WRITING

__all__ = ["argument", "attribute", "function", "missing_attribute", "option"]


_PACKAGES = (("lme4's", LME4), ("statsmodels'", (*WRITING, *READING)))


def attribute(name: str) -> str | None:
    """A sentence on a name of another package, e.g. ``instead of statsmodels' scale use result.sigma2``, or None."""
    for exact in (True, False):
        for package, words in _PACKAGES:
            for word in words:
                if name in word.names or (not exact and name.lower() in map(str.lower, word.names)):
                    whose = "" if "::" in word.theirs else f"{package} "
                    return f"instead of {whose}{_plain(word.theirs)} use {_plain(word.here)}"
    return None


def function(name: str) -> str | None:
    """What to write in a formula instead of a function of R or patsy; None for those that are not known."""
    for word in FORMULAS:
        if name in word.names:
            return f"write {_plain(word.here)}{f' ({_plain(word.note)})' if word.note else ''}"
    return None


def argument(owner: str, name: str) -> str | None:
    """What to do instead of a keyword that the public function `owner` does not take; None where it is not known."""
    return ARGUMENTS.get(owner, {}).get(name)


def option(name: str, value: object, choices: Iterable[str]) -> str:
    """What to add to the refusal of a value: the word for it here, or those that are near; begins with a semicolon.

    Parameters
    ----------
    name : str
        One of `OPTIONS`.
    value : object
    choices : iterable of str
    """
    said = str(value).lower()
    found = OPTIONS.get(name, {}).get(said)
    if found is None:
        close = difflib.get_close_matches(said, {choice.lower(): choice for choice in choices}, n=2, cutoff=0.6)
        ours = [choice for word in close for choice in choices if choice.lower() == word]
        found = f"did you mean {' or '.join(map(repr, dict.fromkeys(ours)))}?" if ours else None
    return "" if found is None else f"; {found}"


def missing_attribute(owner: object, name: str, instead: str = "") -> NoReturn:
    """Raise for an attribute that an object does not have, in place of Python's own message.

    Parameters
    ----------
    owner : object
    name : str
    instead : str
        A remedy that is known better than by the tables of words.

    Raises
    ------
    AttributeError
    """
    kind = type(owner)
    if hasattr(kind, name):
        object.__getattribute__(owner, name)  # it exists and failed: let its own error through
    found = "" if name.startswith("_") else instead or attribute(name) or _function(name) or _near(name, dir(owner))
    said = f"{kind.__name__!r} object has no attribute {name!r}"
    raise AttributeError(f"{said}: {found}" if found else said, name=name, obj=owner)


def _function(name: str) -> str:
    """A hint where the name is that of a function of this package; empty where it is none."""
    package = sys.modules[__name__.partition(".")[0]]
    return f"it is a function, flc.{name}(result, ...)" if name in package.__all__ and name.islower() else ""


def _near(name: str, known: Iterable[str]) -> str:
    """A hint for an attribute that is nearly the name of another one; empty where none is."""
    public = {other.lower(): other for other in known if not other.startswith("_")}
    close = difflib.get_close_matches(name.lower().strip("_"), public, n=2, cutoff=0.75)
    return f"did you mean {' or '.join(repr(public[other]) for other in close)}?" if close else ""


def _plain(text: str) -> str:
    """Text without the marks of Markdown."""
    quoted = text.replace("`` `", "\0").replace("` ``", "\0")
    return quoted.replace("`", "").replace("\0", "`")
