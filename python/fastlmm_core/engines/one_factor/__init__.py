"""One grouping factor.

conditioning   rows to a conditioned problem
summing        sums about columns that are well conditioned
reading        where its sums come from
problem        the problem, and what is known of its criterion
panels         sums over groups, a panel at a time
wide           the criterion for many fixed effects, by BLAS
"""
