"""What a fit says about its parameters.

hypotheses            text, names or matrices to L beta = r
wald, wald_test       tests of fixed effects and their result
anova                 one test per term
variance_components   variances with standard errors
sandwich              robust covariances
many, many_robust     the same for a batch
many_wald             what its tests are made of, for several hypotheses at once
many_tests            several tests of a batch, and one per term
many_variances        variance parameters of a batch, and shares of the variance
many_permutation      permutation tests of a batch
many_summary          what a simulation study says of an estimator
many_means            marginal means and slopes of a batch
many_moderated        variances that the responses of a batch lend each other
many_masked           fits of responses with missing observations
many_each             fits of problems with designs of their own
many_values           fits of responses with values of their own
false_discoveries     false discovery rates over the responses of a batch
imputation            the same over imputed data sets
means                 marginal means, slopes, contrasts
profile               profile likelihood
likelihood_ratio      comparison of models, tests of variances
options               degrees of freedom and kinds of information
information_criteria   AIC and BIC by several conventions
residual_parameters   structured residuals in natural units
"""
