import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from candid.device import computing_s, num_cores, peak_memory_mib

PRINT_PEAK = "import torch; from candid.device import peak_memory_mib; print(peak_memory_mib(torch.device('cpu')))"


def test_a_peak_is_of_this_program_alone():
    before = peak_memory_mib(torch.device("cpu"))
    large = torch.ones(300 * 2**18)  # 300 MiB
    assert peak_memory_mib(torch.device("cpu")) > min(before, 300)
    started = subprocess.run([sys.executable, "-c", PRINT_PEAK], capture_output=True, text=True, check=True)
    assert float(started.stdout) < peak_memory_mib(torch.device("cpu")) - 100
    assert large[0] == 1


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="nothing tells what other programs compute")
def test_the_machine_computes_what_this_program_does():
    before, until = computing_s(), time.process_time() + 0.5
    while time.process_time() < until:
        pass
    after = computing_s()
    assert before is not None
    assert after is not None
    assert after - before > 0.4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no program can be kept to some cores")
def test_cores_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert num_cores() == len(allowed)


COUNT_PAGES = """
import resource, torch
from candid.device import keep_freed_memory, return_freed_memory
{how}()
def take():
    for _ in range(10):
        torch.ones(64 * 2**18)  # 64 MiB
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("how", "least", "most"),
    [("keep_freed_memory", 0, 50_000), ("return_freed_memory", 160_000, 200_000)],  # 64 MiB are 16,384 pages
)
def test_pages_are_made_anew_only_where_memory_is_scarce(how: str, least: int, most: int):
    counted = subprocess.run(
        [sys.executable, "-c", COUNT_PAGES.format(how=how)], capture_output=True, text=True, check=True
    )
    assert least <= int(counted.stdout) <= most
