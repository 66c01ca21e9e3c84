"""What is printed.

summary   tables of a fit as text, HTML and frames
glance    one row about a fit
"""
