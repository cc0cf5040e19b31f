"""cifarbench: CIFAR-10 experiments from the command line, with a test set that stays sealed."""

__version__ = "0.1.0"
