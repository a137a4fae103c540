"""Where the arithmetic happens and in which number format."""

import ctypes
import os
import platform
import resource
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from candid.errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels-last"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
NEVER = 2**31 - 1
LARGEST_KEPT_BYTES = 64 * 2**10
"""Blocks below this stay with the process when they are freed; they are few, and often used again."""
CONTAINER_LIMITS = (  # of cgroups 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:1, mps."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    available += ["mps"] if torch.backends.mps.is_available() else []
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not any(name in (full, full.partition(":")[0]) for full in available):
        raise InputError(f"There is no device {name!r}; this machine has {', '.join(available)}. Use --device auto.")
    return device


def choose_precision(asked: str, device: torch.device, model: nn.Module) -> Precision:
    """The precision asked for, or for "auto" bf16 where this device gains by it with this network.

    Depthwise and grouped convolutions are slower in bf16 than in fp32 on CPUs, and in networks without
    normalisation the short format's rounding costs more than it saves; both stay in fp32.
    """
    if asked == "auto":
        return "bf16" if _has_fast_bf16(device) and _gains_by_bf16(model) else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise InputError("training.precision is 'fp16' on the CPU; it must be 'fp32', 'bf16' or 'auto' there.")
    return "fp32" if asked == "fp32" else "bf16" if asked == "bf16" else "fp16"


def choose_memory_format(asked: str) -> MemoryFormat:
    """The memory format asked for; for "auto" channels last, which convolutions on CPUs and GPUs prefer."""
    return "contiguous" if asked == "contiguous" else "channels-last"


def refuse_compiling_without_compiler(device: torch.device) -> None:
    """Raise an InputError where torch.compile would find nothing to compile with."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise InputError(
            "training.compile is true, but there is no C++ compiler; it must be false, or install g++ or clang++."
        )


def torch_memory_format(memory_format: str) -> torch.memory_format:
    """What torch calls the memory format of a recipe."""
    return torch.contiguous_format if choose_memory_format(memory_format) == "contiguous" else torch.channels_last


def num_cores() -> int:
    """Cores that this process may use, which are fewer than the machine has where a cluster deals them out."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_processor() -> str:
    """The processor's name and its cores, such as "AMD EPYC, 2 cores"."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def describe_device(device: torch.device) -> str:
    """The device's name for people, such as "cuda (NVIDIA H100)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def peak_memory_mib(device: torch.device) -> float:
    """The most memory in MiB held so far: on a GPU by tensors, on the CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # Linux' getrusage tells of the program that started this one too
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def resident_bytes() -> int:
    """Memory that this process holds now, with the pages of its libraries."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return round(peak_memory_mib(torch.device("cpu")) * 2**20)  # nothing tells macOS' own figure without a package


def computing_s() -> float | None:
    """Seconds that all processes of this machine have computed, added up over its cores; None where nothing tells."""
    file = Path("/proc/stat")
    if not file.is_file():
        return None
    user, nice, system = map(int, file.read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def held_memory(device: torch.device) -> int:
    """Bytes held now: on a GPU by tensors, on the CPU by the whole process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def machine_memory(device: torch.device) -> int:
    """Bytes of memory there are: of the GPU, or of the machine, or as many as the container may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in CONTAINER_LIMITS:
        text = file.read_text().strip() if file.is_file() else "max"
        limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def return_freed_memory() -> None:
    """Give freed blocks back to the system at once, so that a process holds little more than what is in use.

    Without it, glibc keeps what was freed, and a process that trains holds up to 1.8 times of what it uses. It costs
    time: the system blanks each page before it hands it out again.
    """
    _set_malloc({M_MMAP_MAX: NEVER, M_MMAP_THRESHOLD: LARGEST_KEPT_BYTES})


def keep_freed_memory() -> None:
    """Keep freed blocks for the next step, which needs the same again, instead of having their pages blanked anew.

    glibc by itself gives back the blocks above 32 MiB, which are most of a step's.
    """
    _set_malloc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER})


def _set_malloc(options: Mapping[int, int]) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without mallopt
            for option, value in options.items():
                ctypes.CDLL(None).mallopt(option, value)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
    return False


def _gains_by_bf16(model: nn.Module) -> bool:
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    normalises = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    wide = any(convolution.in_channels >= 16 for convolution in convolutions)
    return normalises and wide and all(convolution.groups == 1 for convolution in convolutions)
