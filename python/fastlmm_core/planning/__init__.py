"""A study before there are data.

assumed   a model with stated parameters
power     power by simulation
curves    along designs and effects
studies   simulated studies: a test of each draw
variances   power of tests of variances
variations   intraclass correlations and missing observations of a plan
"""
