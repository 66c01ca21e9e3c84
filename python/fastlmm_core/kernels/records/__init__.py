"""Arguments of kernels that take many: named fields, read by name on the other side.

Each room is as long as the list of fields, each with its shape: there is no code.

objectives     what kernels ask of criteria and of covariance structures
rows           of a model with one grouping factor, and what is found of their columns
batches        responses on one design, with one grouping factor
factors        responses on one design, with several
stacks         problems with designs or values of their own
deletions      fits without some of the rows
residuals      subjects with structured residuals
"""
