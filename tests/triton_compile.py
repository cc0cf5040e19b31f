"""Compile every kernel for GPUs down to machine code for one, which needs none: python tests/triton_compile.py 90."""

from __future__ import annotations

import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cifarbench.kernels import gpu_conv, gpu_images, gpu_loss, gpu_muon, gpu_norm, gpu_pool, gpu_tiles

MAPS = ("x_ptr", "slices_ptr", "logits_ptr", "added_ptr", "y_ptr", "grad_ptr", "dx_ptr", "dadded_ptr")
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
CONSTANTS |= {"SIDE": 32, "HOLE": 12, "REFLECTS": True, "CORNERS": 4, "RESCALES": True, "CHANNELS": 24, "INPUTS": 24}
CONSTANTS |= {"SLICE": gpu_conv.SLICE, "OUTPUTS": gpu_conv.OUTPUTS, "WINDOWS": 0}
OTHERS = CONSTANTS | dict.fromkeys(("ADDS", "KEEPS", "REFLECTS", "RESCALES"), False)
OTHERS |= {"ACT": "relu", "HOLE": 0, "CORNERS": 1}
LAUNCHED = {gpu_conv._pooled: gpu_conv.FORWARD, gpu_conv._weight_sums: gpu_conv.BACKWARD}
# Of Muon's, in which gradients are not maps and stacks are.
MATRICES = {"grad_ptr": "*fp32", "out_ptr": "*bf16", "update_ptr": "*bf16"}


def kind(function: triton.JITFunction, name: str) -> str:
    """The type of an argument, which its name says; maps are bfloat16."""
    if name in CONSTANTS:
        return "constexpr"
    types = TYPES | MATRICES if function in vars(gpu_muon).values() else TYPES
    return types.get(name) or ("*fp32" if name.endswith("_ptr") else "fp32" if name in FLOATS else "i32")


def kernels() -> list[triton.JITFunction]:
    """What is launched: the functions whose first argument is memory."""
    modules = (gpu_conv, gpu_images, gpu_loss, gpu_muon, gpu_norm, gpu_pool)
    functions = [value for module in modules for value in vars(module).values()]
    found = {function.fn: function for function in functions if isinstance(function, triton.JITFunction)}
    return [each for each in found.values() if each.arg_names[0].endswith("_ptr") and each not in CALLED]


def compiled(
    function: triton.JITFunction, values: dict[str, object], capability: int
) -> triton.compiler.CompiledKernel:
    """A kernel with these constants and, where it has a form of its own, as it is launched."""
    form = LAUNCHED.get(function, {})
    values = values | form
    constants = {(index,): values[name] for index, name in enumerate(function.arg_names) if name in values}
    signature = {name: kind(function, name) for name in function.arg_names}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    options = {name: value for name, value in form.items() if name.startswith("num_")}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> None:
    """Compile them all with both sets of constants, and print how many there were."""
    for function, values in itertools.product(kernels(), (CONSTANTS, OTHERS)):
        kernel = compiled(function, values, int(sys.argv[1]))
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= gpu_conv.SHARED_MEMORY, function
    print(len(kernels()))


if __name__ == "__main__":
    main()
