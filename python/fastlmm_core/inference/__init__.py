"""What a fit says about its parameters.

hypotheses            text, names or matrices to L beta = r
information           Satterthwaite's and Kenward and Roger's moments
wald, wald_test       tests of fixed effects and their result
anova                 one test per term
variance_components   variances with standard errors
sandwich              robust covariances
many, many_robust     the same for a batch
imputation            the same over imputed data sets
means                 marginal means, slopes, contrasts
profile               profile likelihood
likelihood_ratio      comparison of models, tests of variances
"""
