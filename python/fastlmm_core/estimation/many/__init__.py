"""Many responses on one design.

one_factor        what the responses share where there is one factor
factor_lanes      the same for several with one effect each
correlated_lanes   the same for several with effects that may be correlated
several_factors   the same for several, one response after the other
visits            the same for `us` residuals over visits
batch_fit         the record of many fits
parts             some of the responses, and batches put together
masks             responses with missing observations
mask_parts        some of these, several put together
responses_of_mask    these where they stand among others
sparse            sums of sparse responses
stack             problems with designs of their own
stack_fit         fits of these
flat_rows         rows of many problems, one after the other
effects           BLUPs of problems with designs of their own
values            responses with observations, weights, offset or covariates of their own
covariate_lanes   what responses with covariates share, where these are all that is their own
covariates        columns of X with values of each response's own
progress          results written block by block, and runs that go on later
pieces            pieces of the responses over threads
looks             fits in lanes, searches from other starts, single fits
patterns          Kenward and Roger's moments of many fits
start             a common point, and what a first step from it needs
search            the screen for other minima of many responses
workers           chunks of Dask, fitted by the workers that have them
"""
