"""What a batch says of its parameters: fits of many responses, or of many problems.

tests             tests of one hypothesis, for each response
several           several tests of a batch, and one per term
t_tests           what several t tests have in common
contrasts         what tests are made of, for several hypotheses at once
robust            robust covariances
each              fits of problems with designs of their own
own_designs       what fits of which each has a design of its own have in common
own_tests         the tests of these
masked            fits of responses with missing observations
means             marginal means and slopes of a batch
with_means        the methods that ask for them
moderated         variances that the responses of a batch lend each other
permutation       permutation tests of a batch
rearrangements    what they exchange
symmetric_roots   roots of V, by which random effects are taken out before
structured_permutation    what they take of structured residuals
own_permutation   the same of fits of which each has a design of its own
summary           what a simulation study says of an estimator
labelled          estimates with names for their dimensions
variances         variance parameters of a batch, and shares of the variance
values            fits of responses with values of their own
"""
