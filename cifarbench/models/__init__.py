"""Networks built from torch.nn, each family in a file of its own."""
