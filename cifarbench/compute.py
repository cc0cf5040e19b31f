"""Where and in which number format to compute."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from cifarbench import __version__
from cifarbench.errors import ResourceError
from cifarbench.kernels import modules

_ALL_THREADS = torch.get_num_threads()  # what torch takes by itself: the cores, or what OMP_NUM_THREADS says
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class Compute:
    """A device with the number format of the passes, and whether training takes our own operations there."""

    device: torch.device
    precision: str
    own_kernels: bool = False

    def autocast(self) -> contextlib.AbstractContextManager:
        """The autocast context of the passes: bf16 or fp16 products, fp32 weights."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])


def choose_compute(
    device: str, precision: str, threads: int | None, local_rank: int = 0, own_kernels: bool = False
) -> Compute:
    """Resolve "auto", set the CPU thread count, and keep a CPU's freed memory for the next tensor.

    `own_kernels` asks for our own operations, which are taken where they can be had: on a CPU with a C compiler, on an
    NVIDIA GPU with Triton.

    Raises:
        ResourceError: the device asked for is not there; nothing else is taken in its place.
    """
    use_threads(threads)
    chosen = _device(device, local_rank)
    if chosen.type == "cpu":
        keep_freed_memory()
    elif chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # which Triton's kernels are launched on
    found = _precision(precision, chosen)
    return Compute(chosen, found, own_kernels and modules.are_there(chosen, found))


def use_threads(count: int | None) -> int:
    """Compute with `count` CPU threads from now on, None for all, whatever was asked for before; returns how many."""
    torch.set_num_threads(count or _ALL_THREADS)
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors, for the next ones, until it ends; returns whether it does.

    The C library of Linux, left alone, asks the kernel for every large tensor anew and gives it back when it is freed,
    so a training step waits for tens of thousands of fresh pages, each filled with zeros first (mallopt(3), M_MMAP_MAX
    and M_TRIM_THRESHOLD). Other C libraries are left as they are, and so is one that the user has set up: by
    GLIBC_TUNABLES or a variable MALLOC_…_.
    """
    if any(name == "GLIBC_TUNABLES" or re.fullmatch("MALLOC_[A-Z_]+_", name) for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def _device(name: str, local_rank: int) -> torch.device:
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if found[kind])
    if not found[name]:
        there = ", ".join(kind for kind, is_there in found.items() if is_there)
        raise ResourceError(f"`trainer.device` is {name!r}, which this machine does not offer; it has: {there}.")
    if name == "cuda" and local_rank >= torch.cuda.device_count():
        raise ResourceError(
            f"process {local_rank} of this machine has no GPU of its own, of {torch.cuda.device_count()}; "
            "start one process a GPU, or set trainer.device=cpu."
        )
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def _precision(name: str, device: torch.device) -> str:
    if name == "fp16" and device.type == "cpu":
        raise ResourceError("`trainer.precision` is 'fp16', which needs a GPU; take bf16 or fp32 on a CPU.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16, AMX, or ARM's bf16): without it, fp32 is faster."""
    return any({"avx512_bf16", "amx_bf16", "bf16"} & set(line.split()) for line in _cpu_lines("flags", "Features"))


def make_deterministic(wanted: bool, compiles: bool = False) -> None:
    """Allow only kernels that repeat bit for bit, or all of them; of the compiler's choices too where it `compiles`."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if compiles:
        torch.use_deterministic_algorithms(wanted, warn_only=True)
    else:  # the same switch, but the call above imports the compiler to tell it, which takes seconds
        torch.set_deterministic_debug_mode("warn" if wanted else "default")
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted
    # Filling fresh memory guards against reading it unwritten, which no kernel of ours does; it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def draw_from(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from, those of the CPU and of `device`, each step anew.

    As `torch.manual_seed`, which asks every kind of device that torch knows and takes a millisecond for it.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def widest_float(device: torch.device) -> torch.dtype:
    """The widest float that the device adds up in."""
    return torch.float32 if device.type == "mps" else torch.float64


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(compute: Compute, world_size: int) -> dict[str, str | int]:
    """What the numbers of a run depend on beside its config, for the manifest."""
    name = torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else _cpu_name()
    return {
        "cifarbench": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": compute.device.type,
        "device_name": name,
        "precision": compute.precision,
        "kernels": "own" if compute.own_kernels else "torch",
        "threads": torch.get_num_threads(),
        "processes": world_size,
    }


def _cpu_name() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_lines(*prefixes: str) -> list[str]:
    """The lines of Linux's /proc/cpuinfo that start with one of `prefixes`; none elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.startswith(prefixes)]
