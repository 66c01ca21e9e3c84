"""Other packages' ways of asking.

regressor     scikit-learn
statsmodels   specifications of its MixedLM
"""
