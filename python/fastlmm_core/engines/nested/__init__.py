"""Nested factors.

problem   arrays to a conditioned problem in common columns
engine    the criterion by sweeps over subtrees
"""
