import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from candid.device import computing_s, peak_memory_mib

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
