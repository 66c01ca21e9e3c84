"""Models of data that are read in pieces and never held.

source           files, tables, Arrow streams and factories as pieces of a table
recipe           how a piece becomes columns
polynomials      recurrences of orthogonal polynomials from sums of powers
wanted           the states of a formula, learnt from a first pass where they need one
labels           group labels of pieces to slots
reduce           pieces to sums, in one order of additions
cross_products   those sums, which add up; their files
plan             what all workers have to know, and what they do
planned          plans of files, tables and data frames of Dask and Spark
reader           sums where conditioning asks for them
fitting          a formula and a source, or a plan and its sums, to a design and a problem
dask             data frames of Dask
shuffle          lines of sums to buckets by a hash of their label
elsewhere        what is here of groups that are in buckets, and what is refused
buckets          groups that stay with the workers of Dask
nested_buckets   levels of nested factors that do
spark            data frames of Spark
late             one reading of rows whose formula has to see all of them first
exact            sums in twice the precision of rows that can be read once
deletion         what the deletion of groups needs beside the sums
rows             fitted values and residuals, piece by piece
"""
