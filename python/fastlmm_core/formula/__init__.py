"""From text to a design.

syntax            bars and fixed part
rewriting         dots for the parts of a formula, and terms left out
matrices          columns by formulaic
coded_rows        the same columns on new rows, by what the fit remembers of them
coding            coding of factors, for tests of terms
specification     a formula with the state that new data need
response_scale    the way back from log(y) to y
group_means       between, within, group_mean and contextual effects
residual          residual structures as users write them
residual_arrays   residual structures from arrays
residual_rows     rows that are placed among those of a fit
variance          variance functions as users write them
variance_arrays   variance functions from arrays
"""
