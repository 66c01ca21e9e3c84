"""What a fit says about its parameters.

hypotheses            text, names or matrices to L beta = r
wald, wald_test       tests of fixed effects and their result
anova                 one test per term
variance_components   variances with standard errors
sandwich              robust covariances
many                  the same for a batch
false_discoveries     false discovery rates over the responses of a batch
imputation            the same over imputed data sets
means                 marginal means, slopes, contrasts
profile               profile likelihood
likelihood_ratio      comparison of models, tests of variances
options               degrees of freedom and kinds of information
information_criteria   AIC and BIC by several conventions
residual_parameters   structured residuals in natural units
"""
