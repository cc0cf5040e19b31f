"""The loop and what it stands on: device, clock, signals, checkpoints, processes."""
