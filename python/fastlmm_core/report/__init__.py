"""What users read about a fit.

summary          everything on one page
random_effects   their part of the summary
residuals        that of structured residuals
tidy             one row per estimate
glance           one row per fit
model_table      models side by side
paragraph        a fit in sentences
maketables       the protocol of another package
"""
