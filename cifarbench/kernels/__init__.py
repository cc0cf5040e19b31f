"""Steps of training on a CPU that are bound by memory, fused; and weight gradients of small maps."""
