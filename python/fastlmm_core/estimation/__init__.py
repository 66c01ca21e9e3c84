"""From a problem to a fit.

model                a design with its response and its problem
natural_units        the criterion in the units of the caller
fit                  the record of a fit
estimate             from a model to that record
optimize             the search for an optimum, its retries, other minima
optimum              the record of an optimum, and what it is judged by
methods              one run of a method of optimisation
certificate          whether where it ended is an optimum, on the boundary too
constrained          fits whose coefficients are constrained, without rows
iterative            crossed factors without dense matrices
structured           minimise in parameters without constraints, and certify
vanishing            combinations of visits whose variance runs to zero
restricted           random effects whose covariances are functions of fewer parameters
known_variance       the criterion at a residual variance that is known
residual_limit       fits whose residual variance runs to zero
likelihood           at the parameters of a fit, whatever they are
stated               fits at parameters that are given
restored             fits at estimates that were found before
whitening            covariances of rows, and rows made independent
many                 many responses on one design
deletion             refits without groups or rows
search               where else a criterion may have minima
ranks                minima of every rank, where few groups tell unalike
refinement           the criterion of crossed factors from the rows
column_moments       moments of the columns of X and Z
moments              sums that tests of fixed effects need
information          Satterthwaite's and Kenward and Roger's moments from them
structured_moments   the same with structured residuals
structured_effects   BLUPs with structured residuals
statements           parameters as callers state them
"""
