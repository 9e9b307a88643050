"""What this machine is, in words, for reports, model cards and benchmarks, and what suits it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


def describe_hardware() -> str:
    """Processor, cores and GPU, such as 'AMD EPYC 7763, 2 cores'."""
    import torch  # here, since it takes seconds to import

    words = f"{_processor()}, {os.cpu_count()} cores"
    return f"{words}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else words


def best_device() -> torch.device:
    """This process's GPU if there is one (the first, unless a launcher runs several processes), else the CPU."""
    import torch

    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """float32 on CPUs, where half precision is emulated; bfloat16 on GPUs that have it, else float16."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


def mixed_dtype(device: torch.device) -> torch.dtype:
    """What to autocast a long training of float32 weights to: bfloat16 where the hardware computes in it, else float32."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if native else torch.float32


def gpus() -> int:
    """How many GPUs this machine has."""
    import torch

    return torch.cuda.device_count()


def gigabytes(device: torch.device) -> float | None:
    """Memory of the GPU; None for a CPU."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None


def devices() -> list[str]:
    """What can compute at the same time: every GPU by its number, else the processor."""
    return [f"cuda:{i}" for i in range(gpus())] or ["cpu"]


def peak_memory() -> dict[str, int]:
    """The most memory that this process has held so far, in bytes: `ram` and, where a GPU is in use, `gpu`."""
    found = {"ram": _peak_ram()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.max_memory_allocated()
    return found


def _peak_ram() -> int:
    try:  # not getrusage, which begins with what the parent process held
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)  # Windows; elsewhere what is held now


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
