"""Nested factors.

problem    arrays to a conditioned problem in common columns
families   where levels stand in the lanes
engine     the criterion by sweeps over subtrees
"""
