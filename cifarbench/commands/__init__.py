"""One file a verb, and Hydra behind them."""
