"""Compile every kernel for GPUs down to machine code for one, which needs none: python tests/triton_compile.py 90."""

from __future__ import annotations

import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cifarbench.kernels import gpu_conv, gpu_images, gpu_loss, gpu_muon, gpu_norm, gpu_pool, gpu_tiles

MAPS = ("x_ptr", "slices_ptr", "logits_ptr", "turned_ptr", "added_ptr", "y_ptr", "grad_ptr", "dx_ptr", "dadded_ptr")
TYPES = {
    "counter_ptr": "*i64",
    "targets_ptr": "*i64",
    "totals_ptr": "*fp64",
    "positions_ptr": "*i64",
    "moves_ptr": "*i32",
    "which_ptr": "*u8",
    "bytes_ptr": "*u8",
}
TYPES |= {"slope_ptr": "*fp16"} | dict.fromkeys(MAPS, "*bf16")
FLOATS = ("eps", "momentum", "pixel_height", "pixel_width", "pixel_side", "smoothing", "factor", "length")
CALLED = (gpu_conv._slice, gpu_norm._total, gpu_tiles.sum_of)  # by others
CONSTANTS = {"ACT": "gelu", "ADDS": True, "KEEPS": True, "ROWS": 32, "COLUMNS": 64, "PARTS": 64, "TILE": 512}
CONSTANTS |= {"SIDE": 32, "HOLE": 12, "REFLECTS": True, "CORNERS": 4, "RESCALES": True}
CONSTANTS |= {"SLICE": 128, "OUTPUTS": 64, "WINDOWS": 64, "INPUTS": 24, "CHANNELS": 24}
OTHERS = CONSTANTS | {
    "ACT": "relu",
    "ADDS": False,
    "KEEPS": False,
    "HOLE": 0,
    "REFLECTS": False,
    "CORNERS": 1,
    "RESCALES": False,
}


def kind(name: str) -> str:
    """The type of an argument, which its name says; maps are bfloat16."""
    if name in CONSTANTS:
        return "constexpr"
    return TYPES.get(name) or ("*fp32" if name.endswith("_ptr") else "fp32" if name in FLOATS else "i32")


def kernels() -> list[triton.JITFunction]:
    """What is launched: the functions whose first argument is memory."""
    functions = [
        value
        for module in (gpu_conv, gpu_images, gpu_loss, gpu_muon, gpu_norm, gpu_pool)
        for value in vars(module).values()
    ]
    found = {function.fn: function for function in functions if isinstance(function, triton.JITFunction)}
    return [
        function for function in found.values() if function.arg_names[0].endswith("_ptr") and function not in CALLED
    ]


def main() -> None:
    """Compile them all with both sets of constants, and print how many there were."""
    for function, values in itertools.product(kernels(), (CONSTANTS, OTHERS)):
        constants = {(index,): values[name] for index, name in enumerate(function.arg_names) if name in values}
        signature = {name: kind(name) for name in function.arg_names}
        source = ASTSource(fn=function, signature=signature, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32)).asm["cubin"]
    print(len(kernels()))


if __name__ == "__main__":
    main()
