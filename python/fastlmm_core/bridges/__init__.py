"""Other packages' ways of asking.

regressor         scikit-learn
statsmodels       specifications of its MixedLM
marginaleffects   a fit for the functions of that package
"""
