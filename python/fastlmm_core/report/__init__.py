"""What is printed.

summary          tables of a fit as text, HTML and frames
random_effects   their part of the summary
residuals        that of structured residuals
glance           one row about a fit
"""
