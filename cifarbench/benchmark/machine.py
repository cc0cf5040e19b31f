"""What the machine can do at best: the rate of a large matrix product."""

from __future__ import annotations

import time

import torch

from cifarbench.compute import Compute, synchronise

_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_rate(compute: Compute, repeats: int = 5) -> float:
    """Operations per second of a square matrix product in the precision of `compute`, the best of `repeats`.

    A multiply-add counts as two operations. The sides are 2,048 on a CPU and 8,192 on a CUDA device.
    """
    size = _SIZE[compute.device.type]
    left = torch.randn(size, size, device=compute.device).to(_DTYPES[compute.precision])
    best = min(_timed(left, compute.device) for _ in range(repeats + 1))
    return 2 * size**3 / best


def _timed(matrix: torch.Tensor, device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    matrix @ matrix
    synchronise(device)
    return time.perf_counter() - started
