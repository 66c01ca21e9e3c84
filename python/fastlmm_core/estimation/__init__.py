"""From a problem to a fit.

optimize   the compiled Newton method through scipy, certificates, further starts
many       many responses on one design
deletion   refits without groups or rows
"""
