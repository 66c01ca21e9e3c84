"""What evaluates the criterion: one engine per shape of model.

protocol      what every engine offers
conditioned   what conditioned problems hold
scaling       criteria in the caller's units
choose        which engine takes a design
rows          rows as the engines see them
starts        points to start from
one_factor    one grouping factor: cross-products per group
nested        nested factors: sweeps from the leaves up
crossed       any factors: block elimination, sparse and dense
restricted    any of them as a function of fewer parameters
residual      structured residuals: per pattern, cluster or series
"""
