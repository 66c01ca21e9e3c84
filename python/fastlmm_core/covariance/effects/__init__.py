"""The covariance of random effects, sigma^2 G(theta), where it is more than full or diagonal.

structure      what an engine asks of the structure of a term
blocks         all terms, and the chain rule from G to theta
relative       any structure of residuals over positions, with a scale of its own
reduced_rank   fa0
names          what they are called in formulas
loadings       the elements of Lambda as parameters
catalogue      all of them by name
"""
