"""Settings of a process that computes."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from var_scaling.process import prepare_process, release_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill():
    before = faults()
    torch.ones(2**22)  # 16 MiB, 4,096 pages
    return faults() - before

prepare_process(1)
assert torch.get_num_threads() == 1
# glibc before 2.38 may not reuse the first blocks: an aligned block needs a little more room, and
# small pieces between them are kept apart for a while.
first, *others = [fill() for _ in range(32)]
release_memory()
print(first, min(others), fill())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_until_it_is_released():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, least, last = map(int, done.stdout.split())
    assert first > 4_000
    assert least < 100
    assert last > 4_000
