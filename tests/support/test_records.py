"""Dataclasses that set their fields at once are those that dataclass makes."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from fastlmm_core.support.records import at_once


@dataclass(frozen=True)
class Plain:
    a: int
    b: tuple[int, ...]
    c: str | None = None
    d: int = 3


@at_once
@dataclass(frozen=True)
class Quick:
    a: int
    b: tuple[int, ...]
    c: str | None = None
    d: int = 3


class Further(Quick):
    pass


def test_they_are_what_dataclass_makes():
    for given, named in (((1, (2,)), {}), ((1,), {"b": (4,), "d": 5}), ((1, (2,), "x", 7), {})):
        one, other = Plain(*given, **named), Quick(*given, **named)
        assert vars(one) == vars(other)
        assert repr(one).replace("Plain", "Quick") == repr(other)
        assert hash(one) == hash(other)
        assert vars(replace(one, c="y")) == vars(replace(other, c="y"))
        assert pickle.loads(pickle.dumps(other)) == other
    assert inspect.signature(Plain) == inspect.signature(Quick)
    assert vars(Further(1, (2,))) == vars(Quick(1, (2,)))


@pytest.mark.parametrize(("given", "named"), [((), {}), ((1,), {}), ((1, (), "", 2, 3), {}), ((1, ()), {"e": 2})])
def test_they_refuse_what_dataclass_refuses(given, named):
    for kind in (Plain, Quick):
        with pytest.raises(TypeError):
            kind(*given, **named)


def test_they_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Quick(1, ()).a = 2


@dataclass(frozen=True)
class Made:
    a: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Counted:
    a: int
    b: int = field(init=False, default=1)


@dataclass(frozen=True, kw_only=True)
class Named:
    a: int


@dataclass(frozen=True)
class Checked:
    a: int

    def __post_init__(self) -> None:
        raise AssertionError


@dataclass(frozen=True, slots=True)
class Slots:
    a: int


@pytest.mark.parametrize("kind", [Made, Counted, Named, Checked, Slots])
def test_what_does_more_when_it_is_made_is_refused(kind):
    with pytest.raises(TypeError, match="does more than"):
        at_once(kind)
