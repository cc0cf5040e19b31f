"""From a model to predictions, and from predictions to metrics."""
