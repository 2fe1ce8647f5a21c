"""What this processor can do, as far as numeric libraries make use of it.

Eight-bit products are exact only where the processor sums them in 32 bits (VNNI); elsewhere they are summed in pairs
in 16 bits, which may saturate. bf16 products are fast only in hardware. Variables that hold libraries back count, too,
so that one machine can stand for another in tests.
"""

from __future__ import annotations

import os

import torch

_HELD_BACK = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "CT2_FORCE_CPU_ISA", "CT2_USE_MKL", "MKL_ENABLE_INSTRUCTIONS")
_FEATURES = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_bf16": "AMX",
    "neon": "NEON",
    "i8mm": "int8 products",
    "bf16": "bf16",
}
"""PyTorch's names of processor features → the names that people search for."""
_BEYOND_AVX2 = {"AVX-512", "VNNI", "bf16", "AMX"}


def processor_name() -> str:
    """The processor as its maker calls it."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or torch.cpu.get_capabilities().get("architecture"))


def processor_features() -> list[str]:
    """Its features that libraries may use here: `["AVX2", "AVX-512", "VNNI"]`, without those held back."""
    capabilities = torch.cpu.get_capabilities()
    found = list(dict.fromkeys(name for key, name in _FEATURES.items() if capabilities.get(key)))
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() == "AVX2":
        return [name for name in found if name not in _BEYOND_AVX2]
    return found


def may_be_fast_in_bf16() -> bool:
    """False on x86 without bf16 instructions: a product takes two hundred times as long there as in float32."""
    x86 = str(torch.cpu.get_capabilities().get("architecture")).startswith("x86")
    return not x86 or bool({"bf16", "AMX"} & set(processor_features()))


def processor_kind() -> str:
    """Equal for processors on which an eight-bit model computes the same: features, and what holds libraries back."""
    held_back = [f"{name}={os.environ[name]}" for name in _HELD_BACK if os.environ.get(name)]
    architecture = str(torch.cpu.get_capabilities().get("architecture"))
    vendor = processor_name().split(" ")[0]
    return " ".join([architecture, vendor, *processor_features(), *held_back])
