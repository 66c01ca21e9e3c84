"""From the criterion of a conditioned problem to that of the caller's units."""

from __future__ import annotations

from math import log

from .protocol import Problem

__all__ = ["criterion_constant", "criterion_offset"]


def criterion_constant(problem: Problem, reml: bool) -> float:
    """Criterion in the caller's units, but for the scale of y, less that of the conditioned problem."""
    return problem.log_constant - (problem.log_jacobian if reml else 0.0)


def criterion_offset(problem: Problem, reml: bool) -> float:
    """Criterion in the caller's units less that of the conditioned problem."""
    nu = problem.n - problem.rank if reml else problem.n
    return criterion_constant(problem, reml) + nu * 2.0 * log(problem.scale)
