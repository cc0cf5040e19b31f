"""The published table: its rows, the runs behind them, their records, and the page made from those alone."""
