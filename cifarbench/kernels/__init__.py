"""Operations of our own for training and evaluation: in C for CPUs, in Triton for NVIDIA GPUs."""
