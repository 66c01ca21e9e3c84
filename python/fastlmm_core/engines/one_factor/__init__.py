"""One grouping factor.

problem   rows to a conditioned problem
reading   where its sums come from
wide      the criterion for many fixed effects, by BLAS
"""
