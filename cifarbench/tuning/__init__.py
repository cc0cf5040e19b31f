"""Hyperparameter search on validation images, over Optuna."""
