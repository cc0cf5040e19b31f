"""Optimizers, their parameter groups, and learning-rate schedules as functions of progress."""
