"""The command line.

parser    commands and their options
run       what each does
records   results as JSON
"""
