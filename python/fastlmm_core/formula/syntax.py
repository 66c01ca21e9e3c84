"""Formulas in lme4's syntax, read but not evaluated.

`parse` splits a formula into the response, the fixed part and the bars; what stands before, between and inside them
is kept as text, with the names that it uses. Sums of names are read here, every other part by formulaic, which is not
imported before such a part is met. Nothing here knows of tables.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ..covariance.effects.names import EFFECTS, named
from ..errors import LMMError
from ..support.hints import function

__all__ = [
    "C_OF_COLUMN",
    "Bar",
    "Parsed",
    "Side",
    "capital",
    "first_line",
    "parse",
    "side_of",
    "signed_terms",
    "sum_of_truths",
    "terms_of",
]

Plan = tuple[tuple[str, ...], ...]  # per matrix column the data columns whose product it is; () is the intercept

_NAME = r"(?:`[^`]+`|[^\W\d][\w.]*)"
_PLAIN_SUM = re.compile(rf"(?:(?P<intercept>[01])\s*(?:\+\s*|$))?(?P<names>{_NAME}(?:\s*\+\s*{_NAME})*)?")
C_OF_COLUMN = re.compile(rf"C\(\s*({_NAME})\s*[,)]")
_CLOSERS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Side:
    """One part of the formula: the response, the fixed part, or the left side of a bar."""

    text: str
    where: str  # what messages call it
    label: str
    plan: Plan | None  # None unless an intercept and products of column lookups are all there is
    names: tuple[tuple[str, bool], ...]  # names to look up; True where a function or module may be meant
    key: tuple[str, ...]  # equal for parts with the same matrix
    computed: frozenset[str] = frozenset()  # names in expressions other than C(name)
    numbers: frozenset[str] = frozenset()  # names that are computed with as numbers, in expressions or products
    labels: frozenset[str] = frozenset()  # names that are levels or truth values there, as in C(x), x == 3, ~x
    bare: frozenset[str] = frozenset()  # names that stand by themselves, alone or in products

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names of the plan, as formulaic forms them."""
        return tuple(":".join(product) or "Intercept" for product in self.plan or ())


@dataclass(frozen=True)
class Bar:
    """One random-effects term; ``(x | a/b)`` makes two."""

    left: Side
    factors: tuple[str, ...]
    structure: str

    @property
    def name(self) -> str:
        return ":".join(self.factors)

    @property
    def where(self) -> str:
        return self.left.where


@dataclass(frozen=True)
class Parsed:
    response: Side
    fixed: Side
    bars: tuple[Bar, ...]

    @property
    def sides(self) -> list[Side]:
        """The response, the fixed part, and the left sides of the bars."""
        return [self.response, self.fixed, *(bar.left for bar in self.bars)]


@lru_cache(maxsize=256)
def parse(formula: str) -> Parsed:
    """Split a formula into response, fixed part and bars."""
    if not isinstance(formula, str):
        raise LMMError(f"`formula` must be a string such as 'y ~ x + (x | g)', not {type(formula).__name__!r}.")
    if "#" in re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"", "", formula):
        raise LMMError(f"The formula {formula!r} has a '#': comments are not part of formulas; leave them out.")
    _refuse_words_of_r(formula)
    tildes = [at for at, char, depth in _marks(formula) if char == "~" and depth == 0]
    if len(tildes) != 1:
        raise LMMError(
            f"The formula {formula!r} has {len(tildes) or 'no'} '~' outside parentheses; write the response, one '~' "
            "and the terms, e.g. 'y ~ x + (x | g)'."
        )
    left, right = formula[: tildes[0]].strip(), formula[tildes[0] + 1 :]
    if not left:
        raise LMMError(f"The formula {formula!r} names no response; write it to the left of '~'.")
    fixed, bars, end = "", [], 0
    right, structured = _structured(right)
    marks = _marks(right)
    for start, stop in _groups(marks):
        if not any(char == "|" for at, char, _ in marks if start < at < stop):
            continue
        before, after = (fixed + right[end:start]).rstrip(), right[stop + 1 :].lstrip()
        if (before and before[-1] != "+") or (after and after[0] not in "+-"):
            raise LMMError(
                f"The term {right[start : stop + 1]} of the formula must stand by itself; join it to the other terms "
                "with '+'."
            )
        fixed, end = before[:-1], stop + 1
        bars += _bars(right[start + 1 : stop], structured.get(start))
        if not fixed.strip() and after[:1] == "+":
            end = right.index("+", end) + 1
    fixed = (fixed + right[end:]).strip()
    if any(char == "|" for _, char, _ in _marks(fixed)):
        raise LMMError(f"A bar in the formula {formula!r} stands outside parentheses; write it as (1 | g).")
    return Parsed(side_of(left, "the response", False), side_of(fixed or "1", "the fixed part"), tuple(bars))


_CALL = re.compile(rf"(?<![\w.`])({'|'.join(EFFECTS)})\s*\(")
_OPTION = re.compile(r"(hom|rank|d)\s*=\s*(\w+)")
_TRUTHS = {"TRUE": True, "True": True, "FALSE": False, "False": False}


def _structured(text: str) -> tuple[str, dict[int, str]]:
    """Terms such as ``cs(x | g, hom=True)`` as ``(x | g)``, with the structure by the position of the parenthesis."""
    found: dict[int, str] = {}
    at = 0
    while (call := _CALL.search(text, at)) is not None:
        start, opened = call.start(), call.end() - 1
        at = call.end()
        depth, stop = 1, call.end()
        while stop < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[stop], 0)
            stop += 1
        inside = text[opened + 1 : stop - 1]
        if depth or "|" not in inside:
            continue
        left, right = inside.rsplit("|", 1)
        group, *options = right.split(",")
        term = f"{left}|{group}"
        found[start] = named(call[1], **_options(options, text[start:stop]))
        text = f"{text[:start]}({term}){text[stop:]}"
        at = start + len(term) + 2
    return text, found


def _options(written: list[str], term: str) -> dict[str, Any]:
    """``hom=TRUE`` and ``rank=2`` of a structured term."""
    out: dict[str, Any] = {}
    for option in written:
        read = _OPTION.fullmatch(option.strip())
        value: Any = None
        if read:
            value = _TRUTHS.get(read[2]) if read[1] == "hom" else int(read[2]) if read[2].isdigit() else None
        if read is None or value is None:
            raise LMMError(
                f"The term {term} of the formula has {option.strip()!r}, which is no option of it; write e.g. "
                "cs(0 + x | g, hom=True) or fa0(0 + x | g, rank=2)."
            )
        out["rank" if read[1] == "d" else read[1]] = value
    return out


def _refuse_words_of_r(formula: str) -> None:
    """Signs and names that have a meaning in R only."""
    bare = re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"|\bhom\s*=\s*\w+", "", formula)
    if "$" in bare:
        raise LMMError(f"The formula {formula!r} has a '$': formulas name the columns of `data`, without the table.")
    for word, ours in (("TRUE", "True"), ("FALSE", "False"), ("NULL", "None"), ("NA", "None")):
        if re.search(rf"(?<![\w.]){word}(?![\w.(])", bare) and "=" in bare:
            raise LMMError(f"The formula {formula!r} has {word}; Python writes {ours}.")


def _marks(text: str) -> list[tuple[int, str, int]]:
    """Position, character and depth of the formula's own symbols: none inside quotes, calls, [] or {}."""
    marks: list[tuple[int, str, int]] = []
    opened: list[tuple[int, bool]] = []  # position, and whether what is inside belongs to formulaic alone
    at = 0
    while at < len(text):
        char = text[at]
        opaque = bool(opened) and opened[-1][1]
        if char in "`'\"":
            close = text.find(char, at + 1)
            if close < 0:
                raise LMMError(f"The quote {char} at character {at} of {text!r} is not closed; close it.")
            at = close
        elif char in _CLOSERS:
            opaque = opaque or char != "(" or (at > 0 and (text[at - 1].isalnum() or text[at - 1] in "_.)]`"))
            opened.append((at, opaque))
        elif char in ")]}":
            if not opened or _CLOSERS[text[opened[-1][0]]] != char:
                raise LMMError(f"The {char!r} at character {at} of {text!r} closes nothing; balance the parentheses.")
            opaque = opened.pop()[1]
        if char in "()|~+-*:/^" and not opaque:
            marks.append((at, char, len(opened) - (char == "(")))
        at += 1
    if opened:
        at = opened[-1][0]
        raise LMMError(f"The {text[at]!r} at character {at} of {text!r} is not closed; balance the parentheses.")
    return marks


def _groups(marks: Sequence[tuple[int, str, int]]) -> list[tuple[int, int]]:
    """Positions of the outermost pairs of parentheses."""
    opening = [at for at, char, depth in marks if char == "(" and depth == 0]
    closing = [at for at, char, depth in marks if char == ")" and depth == 0]
    return list(zip(opening, closing, strict=True))


def _unwrap(text: str) -> str:
    """Strip blanks and parentheses around the whole text."""
    text = text.strip()
    while _groups(_marks(text)) == [(0, len(text) - 1)]:
        text = text[1:-1].strip()
    return text


def _split(text: str, symbol: str) -> list[str]:
    """Pieces of the text between a symbol outside parentheses."""
    cuts = [-1, *(at for at, char, depth in _marks(text) if char == symbol and depth == 0), len(text)]
    return [text[a + 1 : b] for a, b in pairwise(cuts)]


def signed_terms(text: str) -> list[tuple[str, str]]:
    """The terms of a sum, each with its sign, "+" or "-"; bars stand in their parentheses."""
    found, start, sign = [], 0, "+"
    for at, char, _ in [mark for mark in _marks(text) if mark[1] in "+-" and mark[2] == 0] + [(len(text), "", 0)]:
        term = text[start:at].strip()
        if term:
            found.append((sign, term))
            sign = "+"
        sign = "-" if (char == "-") != (sign == "-") else "+"
        start = at + 1
    return found


def _bars(inside: str, structure: str | None = None) -> list[Bar]:
    """The terms of one pair of parentheses: (x | g) makes one, (x | a/b) one for a and one for a:b."""
    inside = _unwrap(inside)
    where = f"the term ({inside})"
    pieces = _split(inside, "|")
    double = len(pieces) == 3 and not pieces[1]
    left, right = pieces[0].strip(), pieces[-1].strip()
    if (len(pieces) != 2 and not double) or any(char == "|" for _, char, _ in _marks(left + " " + right)):
        raise LMMError(f"{capital(where)} of the formula must hold one bar, as in (x | g) or (x || g).")
    if double and structure is not None:
        raise LMMError(f"{capital(where)} of the formula has '||' within a structure; write '|', or diag() alone.")
    if not left or not right:
        raise LMMError(
            f"{capital(where)} of the formula has nothing to the {'right' if left else 'left'} of its bar; write "
            "e.g. (1 | g) for a random intercept per level of g."
        )
    side = side_of(left, where)
    path: tuple[str, ...] = ()
    bars = []
    for level in _split(_unwrap(right), "/"):
        for name in _split(_unwrap(level), ":"):
            name = _unwrap(name)
            if not re.fullmatch(_NAME, name):
                raise LMMError(
                    f"{capital(where)} of the formula has {right!r} to the right of its bar, where only a column, "
                    "a:b or a/b can stand. Write one term per grouping factor, and make a column of anything that "
                    "has to be computed."
                )
            path = tuple(dict.fromkeys((*path, name.strip("`"))))
        bars.append(Bar(side, path, structure or ("diagonal" if double else "full")))
    return bars


def side_of(text: str, where: str, intercept: bool = True) -> Side:
    """Read one part; sums of names need no parser."""
    plain = _PLAIN_SUM.fullmatch(text)
    if plain and (plain["names"] or plain["intercept"] == text) and (intercept or re.fullmatch(_NAME, text)):
        names = dict.fromkeys(name.strip("`") for name in re.findall(_NAME, plain["names"] or ""))
        if "in" not in names:
            plan: Plan = (*([()] if intercept and plain["intercept"] != "0" else []), *((name,) for name in names))
            label = text.strip("`") if not intercept else text
            looked_up = tuple((name, False) for name in names)
            return Side(text, where, label, plan, looked_up, tuple(map(repr, plan)), bare=frozenset(names))
    products: list[tuple[str, ...]] | None = []
    found: dict[str, bool] = {}
    computed: set[str] = set()
    numbers: set[str] = set()
    labels: set[str] = set()
    bare: set[str] = set()
    terms = terms_of(text, where, intercept)
    for term in terms:
        product = []
        for factor in term.factors:
            if factor.eval_method.value == "lookup":
                found[factor.expr] = False
                bare.add(factor.expr)
                product.append(factor.expr)
                if len(term.factors) > 1:
                    numbers.add(factor.expr)
            elif factor.eval_method.value == "python":
                _refuse_xor(factor.expr, where)
                for name, optional in names_in(factor.expr).items():
                    found[name] = found.get(name, True) and optional
                    if not C_OF_COLUMN.match(factor.expr):
                        computed.add(name)
                for name, as_label in _uses(factor.expr):
                    (labels if as_label else numbers).add(name)
                products = None
            elif str(factor.expr) != "1" or len(term.factors) > 1:
                products = None
        if products is not None:
            products.append(tuple(product))
    if products is not None:
        plan = tuple(products)
        return Side(text, where, text, plan, tuple(found.items()), tuple(map(repr, plan)), bare=frozenset(bare))
    sets = map(frozenset, (computed, numbers, labels, bare))
    return Side(text, where, text, None, tuple(found.items()), tuple(map(str, terms)), *sets)


@lru_cache(maxsize=256)
def terms_of(text: str, where: str, intercept: bool) -> Any:
    """formulaic's terms of one part."""
    from formulaic import Formula, SimpleFormula  # type: ignore[import-untyped]

    try:
        terms = Formula(text if intercept else f"0 + {text}")
    except Exception as error:  # formulaic raises its own and Python's
        if "`.` operator" in str(error):
            raise LMMError(f"{capital(where)} of the formula, {text!r}, uses '.'; name the columns instead.") from error
        said = _remedy(text) or first_line(error)
        if "Missing operator between" in said:
            said += " A name with blanks or signs stands in backticks: `my column`."
        raise LMMError(f"{capital(where)} of the formula, {text!r}, cannot be read: {said}") from error
    if not isinstance(terms, SimpleFormula):
        raise LMMError(f"{capital(where)} of the formula, {text!r}, must be one sum of terms.")
    return terms


def _remedy(text: str) -> str:
    """What to write instead of a function of R that Python cannot read, such as ``as.factor``."""
    for name in re.findall(r"([^\W\d]\w*(?:\.\w+)+)\s*\(", text):
        found = function(name)
        if found is not None:
            return f"{name}() is not a function of formulas; {found}."
    compared = re.search(r"[^+*:~()]*[<>!=]=?[^+*:~()]*", text)
    return f"A comparison stands inside I(): I({compared[0].strip()})." if compared and "(" not in text else ""


def self_products(text: str) -> list[tuple[str, str]]:
    """Powers of single factors, which are no squares but the factor itself: ``x**2`` gives ("x", "2")."""
    if "^" not in text and "**" not in text:
        return []
    marks = _marks(text)
    places = [at for at, _, _ in marks]
    found = []
    for k, (at, char, _) in enumerate(marks):
        last = k + (char == "*")  # of the operator's characters
        if char != "^" and not (char == "*" and text[at : at + 2] == "**"):
            continue
        base = text[places[k - 1] + 1 if k else 0 : at].strip()
        power = text[places[last] + 1 : places[last + 1] if last + 1 < len(places) else len(text)].strip()
        if base and not base.isdigit() and power.isdigit() and int(power) > 1:
            found.append((base, power))
    return found


def _refuse_xor(expression: str, where: str) -> None:
    """R's power inside a call is Python's exclusive or."""
    tree, original = _read(expression)
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            for side in (node.left, node.right):
                if isinstance(side, ast.Constant) and not isinstance(side.value, bool):
                    node.op = ast.Pow()
                    meant = ast.unparse(tree).replace(" ** ", "**")
                    for alias, column in original.items():
                        meant = meant.replace(alias, f"`{column}`")
                    raise LMMError(
                        f"{capital(where)} of the formula has {expression!r}, where '^' is Python's exclusive or; "
                        f"write {meant} for the power."
                    )


def names_in(expression: str) -> dict[str, bool]:
    """Names in a Python expression, True where all uses are calls or attributes, as `np` is in ``np.log(x)``."""
    tree, original = _read(expression)
    owners = set()
    for node in ast.walk(tree):
        owner = node.func if isinstance(node, ast.Call) else node.value if isinstance(node, ast.Attribute) else None
        if isinstance(owner, ast.Name):
            owners.add(owner)
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            name = original.get(node.id, node.id)
            found[name] = found.get(name, True) and node in owners
    return found


def _read(expression: str) -> tuple[ast.Expression, dict[str, str]]:
    """Syntax tree of a Python expression, and the columns that names in it stand for where they were quoted."""
    quoted: dict[str, str] = {}

    def alias(match: re.Match[str]) -> str:
        return quoted.setdefault(match[1], f"_quoted_{len(quoted)}")

    tree = ast.parse(re.sub("`([^`]+)`", alias, expression).strip(), mode="eval")
    return tree, {name: column for column, name in quoted.items()}


def _uses(expression: str) -> list[tuple[str, bool]]:
    """Names in a Python expression, each with whether the place takes it for a label or truth value, not a number."""
    tree, original = _read(expression)
    found = []
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, ast.Name):
                found.append((original.get(child.id, child.id), _takes_labels(parent, child)))
    return found


def _takes_labels(parent: ast.AST, name: ast.Name) -> bool:
    """Whether a name directly inside `parent` stands for levels or truth values."""
    if isinstance(parent, ast.Call):
        if not isinstance(parent.func, ast.Name) or name is parent.func:
            return False
        grouped = parent.func.id in ("within", "between") and name is not parent.args[0]
        return grouped or parent.func.id in ("C", "hashed")
    if isinstance(parent, ast.Attribute):
        return parent.attr in ("astype", "isin", "map", "replace")
    if isinstance(parent, ast.BinOp):
        return isinstance(parent.op, (ast.BitAnd, ast.BitOr, ast.BitXor, ast.LShift, ast.RShift))
    if isinstance(parent, ast.UnaryOp):
        return isinstance(parent.op, (ast.Invert, ast.Not))
    return isinstance(parent, (ast.Compare, ast.BoolOp)) or (isinstance(parent, ast.Subscript) and name is parent.slice)


def sum_of_truths(expression: str, truths: frozenset[str]) -> str | None:
    """The first sum in an expression both of whose terms are truth values: numpy would take it for `or`.

    Parameters
    ----------
    expression : str
    truths : frozenset of str
        Columns that hold truth values.
    """
    tree, original = _read(expression)

    def truth(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return original.get(node.id, node.id) in truths
        if isinstance(node, ast.UnaryOp):
            return isinstance(node.op, ast.Not) or (isinstance(node.op, ast.Invert) and truth(node.operand))
        if isinstance(node, ast.BinOp):
            bits = isinstance(node.op, (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Mult))
            return bits and truth(node.left) and truth(node.right)
        return isinstance(node, ast.Compare)

    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and truth(node.left) and truth(node.right):
            return ast.unparse(node)
    return None


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def first_line(error: Exception) -> str:
    """First line of a message, without formulaic's coloured excerpt."""
    text = str(error).partition("\n")[0].strip() or type(error).__name__
    return text if text.endswith(".") else text + "."
