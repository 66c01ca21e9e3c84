"""Results in files that need neither pickle nor this version of the library to be read.

values      what JSON does not have: tuples, keys that are no text, numbers that are not finite
states      what formulaic remembers of a formula's transforms and levels
residuals   structures of residuals by their names
results     what is written of a result, and a result made from it
"""
