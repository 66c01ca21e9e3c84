"""Formulas made from formulas: dots that stand for the parts of another, and terms left out one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import LMMError
from .syntax import Bar, Side, parse, signed_terms, terms_of

__all__ = ["Written", "updated"]

_DOT = re.compile(r"(?<![\w.)\]`])\.(?![\w.])")
_QUOTED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")


def updated(old: str, new: str) -> str:
    """A formula whose dots stand for the parts of another, as for R's ``update``.

    Parameters
    ----------
    old : str
        A whole formula.
    new : str
        ``"log(.) ~ . + z - (x | g)"``: a dot to the left is the old response, one that is a term of the sum to the
        right all old terms, and one inside a term (``.:z``) the old fixed part.  A term after a minus is left out.
        Without a left side the response stays.

    Returns
    -------
    str

    Raises
    ------
    LMMError
        For terms that are to be left out and are not there, and as `parse`.
    """
    parse(old)
    left, _, right = old.partition("~")
    if new.count("~") != 1:
        raise LMMError(f"the formula {new!r} must have one '~', as in '. ~ . + z'")
    response, _, sum_ = new.partition("~")
    before = signed_terms(right)
    fixed = _joined([(sign, term) for sign, term in before if not _is_bar(term)]) or "1"
    terms: list[tuple[str, str]] = []
    for sign, term in signed_terms(sum_):
        if term == ".":
            if sign == "-":
                raise LMMError(f"the formula {new!r} takes all old terms away; write the terms that are wanted")
            terms += before
            continue
        whole = _filled(term, f"({fixed})")
        same = [known for known in terms if _plain(known[1]) == _plain(whole)]
        if sign == "-" and (same or _is_bar(whole)):
            if not same:
                bars = ", ".join(known for _, known in terms if _is_bar(known)) or "none"
                raise LMMError(f"the formula has no term {whole} to leave out; its random-effects terms are {bars}")
            terms = [known for known in terms if known not in same]
        elif not (same and _is_bar(whole)):
            if sign == "-":
                _refuse_absent(whole, [known for known in terms if not _is_bar(known[1])])
            terms.append((sign, whole))
    if not any(not _is_bar(term) for _, term in terms):
        terms.insert(0, ("+", "1"))
    text = f"{_filled(response.strip(), left.strip()) or left.strip()} ~ {_joined(terms)}"
    parse(text)
    return text


def _refuse_absent(term: str, before: list[tuple[str, str]]) -> None:
    """Refuse a term of the fixed part that is to be left out of a sum in which it is not; no intercept may be said."""
    there, gone = (_terms(parse(f"y ~ {text}").fixed) for text in (_joined(before) or "1", f"0 + {term}"))
    # an interaction may be written either way round
    known, left_out = ({frozenset(one.split(":")) for one in part} for part in (there, gone))
    if set(gone) - {"1"} and known.isdisjoint(left_out):
        raise LMMError(
            f"the formula has no term {term} to leave out; the terms of its fixed part are {', '.join(there) or 'none'}"
        )


def _is_bar(term: str) -> bool:
    return "|" in _QUOTED.sub("", term)


def _plain(term: str) -> str:
    return "".join(term.split())


def _filled(text: str, dot: str) -> str:
    """The text with another in the place of its dots outside quotes."""
    hidden = _QUOTED.sub(lambda match: "\0" * len(match[0]), text)
    out, end = "", 0
    for match in _DOT.finditer(hidden):
        out += text[end : match.start()] + dot
        end = match.end()
    return out + text[end:]


def _joined(terms: list[tuple[str, str]]) -> str:
    out = ""
    for sign, term in terms:
        out += f" {sign} {term}" if out else term if sign == "+" else f"-{term}"
    return out


@dataclass(frozen=True)
class _Bar:
    """One random-effects term: its effects, "1" for the intercept, and the grouping factor."""

    effects: tuple[str, ...]
    factor: str
    correlated: bool

    @property
    def text(self) -> str:
        return f"({_sum(self.effects)} {'|' if self.correlated else '||'} {self.factor})"


@dataclass(frozen=True)
class Written:
    """A formula as lists of terms.

    Attributes
    ----------
    response : str
    fixed : tuple of str
        Terms of the fixed part, "1" first where there is an intercept.
    bars : tuple
        Random-effects terms.
    """

    response: str
    fixed: tuple[str, ...]
    bars: tuple[_Bar, ...]

    @classmethod
    def of(cls, formula: str) -> Written:
        """The lists of a formula whose random effects have no structure of their own."""
        parsed = parse(formula)
        return cls(parsed.response.text, _terms(parsed.fixed), tuple(_bar(bar) for bar in parsed.bars))

    @property
    def formula(self) -> str:
        """As text."""
        return f"{self.response} ~ {' + '.join([_sum(self.fixed), *(bar.text for bar in self.bars)])}"

    def without(self, term: str) -> Written:
        """Without a term of the fixed part, whichever way round an interaction is written."""
        gone = frozenset(term.split(":"))
        return replace(self, fixed=tuple(known for known in self.fixed if frozenset(known.split(":")) != gone))

    def simpler(self) -> Iterator[tuple[str, Written]]:
        """Formulas with one thing less in the random part, and what it is.

        Without the correlations of a term; without an effect that is part of no other effect of its term; without a
        term that is an intercept only, where there are others.
        """
        for i, bar in enumerate(self.bars):
            if bar.correlated and len(bar.effects) > 1:
                yield f"correlations of {bar.text}", self._with(i, replace(bar, correlated=False))
            parts = [frozenset(effect.split(":")) for effect in bar.effects]
            for k, effect in enumerate(bar.effects):
                rest = bar.effects[:k] + bar.effects[k + 1 :]
                if (effect == "1" and rest) or any(parts[k] < other for other in parts):
                    continue
                if rest:
                    yield f"{effect} | {bar.factor}", self._with(i, replace(bar, effects=rest))
                elif len(self.bars) > 1:
                    yield bar.text, replace(self, bars=self.bars[:i] + self.bars[i + 1 :])

    def _with(self, i: int, bar: _Bar) -> Written:
        alone = replace(bar, correlated=True) if bar.effects == ("1",) else bar
        return replace(self, bars=(*self.bars[:i], alone, *self.bars[i + 1 :]))


def _bar(bar: Bar) -> _Bar:
    return _Bar(_terms(bar.left), ":".join(map(_name, bar.factors)), bar.structure == "full")


def _terms(side: Side) -> tuple[str, ...]:
    """Terms of a part, the intercept first."""
    found = []
    for term in terms_of(side.text, side.where, True):
        factors = [_name(f.expr) if f.eval_method.value == "lookup" else str(f.expr) for f in term.factors]
        found.append(":".join(factors) or "1")
    return tuple(sorted(found, key=lambda text: text != "1"))


def _sum(terms: tuple[str, ...]) -> str:
    """Terms joined; the intercept goes without saying, and "0" says that there is none."""
    if "1" not in terms:
        return " + ".join(("0", *terms))
    return " + ".join(terms[1:]) or "1"


def _name(column: str) -> str:
    return column if _IDENTIFIER.fullmatch(column) else f"`{column}`"
