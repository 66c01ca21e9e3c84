"""Everything of a model but the response.

grouping       labels of groups and their codes
terms          random-effects terms and their checks
independence   which rows are independent of which
replication    rows several times over
"""
