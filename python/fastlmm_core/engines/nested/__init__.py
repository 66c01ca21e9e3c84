"""Nested factors.

problem    arrays to a conditioned problem in common columns
shared     factors over shared columns, and rows that stand for cells
cells      sums by cells to a conditioned problem, nested or not
families   where levels stand in the lanes
engine     the criterion by sweeps over subtrees
"""
