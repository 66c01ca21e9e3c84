"""Many responses on one design.

one_factor        what the responses share where there is one factor
several_factors   the same for several, and Newton's method for responses side by side
"""
