"""From text to a design.

syntax          bars and fixed part
matrices        columns by formulaic
coding          coding of factors, for tests of terms
specification   a formula with the state that new data need
group_means     between, within, group_mean and contextual effects
"""
