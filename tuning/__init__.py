"""Optuna searches the parameters of the outlier loss (S4.4): the only place that imports optuna."""
