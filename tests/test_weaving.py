"""Mistakes that are woven into one text do, by their numbers, what each of them does alone."""

import numpy as np
import pytest

import weaving

TEXT = '''"""A module."""
LIMIT = 4


def value(x, y):
    total = 0
    for i in range(x):
        # of each
        if i % 3 == 0:
            total += (i *
                      y)
        elif i % 3 == 1:
            total -= y
        else:
            total += 2
            continue
        total += 1
    while total > 50: total -= 7
    if total < 0:
        return -1
    first = total + x
    total = first * 2 + y
    return total


class Sum:
    bound = 3

    def value(self, x):
        try:
            return 10 // x
        except ZeroDivisionError:
            return self.bound
'''
CHANGES = {
    3: ("total += (i *\n                      y)", "total += (i *\n                      (y + 1))"),
    4: ("total += (i *\n                      y)", "pass"),
    5: ("elif i % 3 == 1:", "elif i % 3 == 2:"),
    6: ("            continue\n", ""),
    7: ("range(x)", "range(1, x)"),
    8: ("total > 50: total -= 7", "total > 40: total -= 7"),
    9: ("    if total < 0:\n        return -1\n", ""),
    10: ("    first = total + x\n    total = first", "    total = x"),
    11: ("first * 2 + y", "first * 2 + y\n    total += 1"),
    12: ("return 10 // x", "return 10 // (x - 1)"),
    13: ("ZeroDivisionError", "ArithmeticError"),
    14: ("return self.bound", "return 0"),
}


def results(text, **names):
    defined = dict(names)
    exec(text, defined)
    return [defined["value"](x, y) for x in range(9) for y in (-3, 2, 11)] + [
        defined["Sum"]().value(x) for x in range(4)
    ]


def woven(changes):
    text, numbers = weaving.weave(TEXT, changes, "here")
    declared = weaving.DECLARED.format(name="here")
    assert text.startswith('"""A module."""\n' + declared)
    return text.replace(declared, ""), numbers


def test_each_number_is_its_mistake_and_any_other_none():
    text, numbers = woven(CHANGES)
    assert numbers == set(CHANGES)
    right = results(TEXT)
    assert results(text, WOVEN_here=-1) == right
    for number, (was, now) in CHANGES.items():
        alone = results(TEXT.replace(was, now))
        assert results(text, WOVEN_here=number) == alone
        assert alone != right or number == 13


@pytest.mark.parametrize("number", range(20))
def test_any_of_them_together(number):
    chosen = np.random.default_rng(number).choice(list(CHANGES), 4, replace=False)
    text, numbers = woven({k: CHANGES[k] for k in chosen})
    assert numbers == set(chosen)
    for k in chosen:
        assert results(text, WOVEN_here=k) == results(TEXT.replace(*CHANGES[k]))


def test_what_is_no_statement_of_a_function_is_left():
    changes = {
        1: ("LIMIT = 4", "LIMIT = 5"),
        2: ("bound = 3", "bound = 4"),
        3: ("def value(self, x)", "def value(self, x, y=2)"),
        4: ("total -= y", "total -= 2 * y"),
    }
    assert woven(changes)[1] == {4}
    kernel = "cdef double twice(double x) nogil:\n    cdef double y = 2.0 * x\n    return y\n"
    assert weaving.weave(kernel, {1: ("2.0 * x", "x"), 2: ("return y", "return x")}, "here")[1] == {2}
