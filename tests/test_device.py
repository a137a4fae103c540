import subprocess
import sys

import torch

from candid.device import peak_memory_mib

PRINT_PEAK = "import torch; from candid.device import peak_memory_mib; print(peak_memory_mib(torch.device('cpu')))"


def test_a_peak_is_of_this_program_alone():
    before = peak_memory_mib(torch.device("cpu"))
    large = torch.ones(300 * 2**18)  # 300 MiB
    assert peak_memory_mib(torch.device("cpu")) > min(before, 300)
    started = subprocess.run([sys.executable, "-c", PRINT_PEAK], capture_output=True, text=True, check=True)
    assert float(started.stdout) < peak_memory_mib(torch.device("cpu")) - 100
    assert large[0] == 1
