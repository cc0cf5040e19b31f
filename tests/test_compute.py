"""The machine: memory that is kept for the next tensor."""

from __future__ import annotations

import platform
import sys

import pytest
import torch
from processes import python, shell

from cifarbench.compute import use_threads

# Pages that the kernel hands out while ten tensors of 64 MiB come and go, after ten that came first.
PAGES = """
import resource
import torch
from cifarbench.compute import choose_compute

choose_compute("cpu", "fp32", 1)

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about the C library of Linux")
def test_freed_memory_is_kept_for_the_next_tensor_unless_the_user_has_set_up_the_library(tmp_path):
    kept = int(python("-c", PAGES, cwd=tmp_path).out)
    given_back = int(python("-c", PAGES, cwd=tmp_path, GLIBC_TUNABLES="").out)
    assert 20 * kept < given_back


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is what torch brings on Linux alone")
@pytest.mark.parametrize(("given", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "5"}, "5")])
def test_idle_threads_sleep_unless_the_user_has_set_them_up(tmp_path, monkeypatch, given, spins):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    done = shell("summary", "model=lenet", cwd=tmp_path, OMP_DISPLAY_ENV="VERBOSE", **given)
    assert done.code == 0, done.err
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.err


def test_a_thread_count_lasts_until_the_next_one_is_chosen():
    before = torch.get_num_threads()
    try:
        all_of_them = use_threads(None)
        assert (use_threads(3), torch.get_num_threads(), use_threads(None)) == (3, 3, all_of_them)
    finally:
        torch.set_num_threads(before)
