"""Everything of a model but the response.

design         everything but y in one record; rows, columns and random effects of other designs
grouping       labels of groups and their codes
streamed       designs of rows that are not held
terms          random-effects terms and their checks
ownership      the large arrays that are the caller's
independence   which rows are independent of which
replication    rows several times over
residual       the residual part: subjects, times, structures
"""
