"""One grouping factor.

problem   arrays to a conditioned problem
"""
