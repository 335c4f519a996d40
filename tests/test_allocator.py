"""Freed memory stays with the process, unless the user has set the allocator up."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from feddlp.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):  # until freed neighbours have grown together
    torch.empty(16 * 2**20).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(16 * 2**20).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word):
    command = [sys.executable, "-c", FAULTS, word]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again_instead_of_mapped_anew(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")  # huge pages are another remedy
    without, with_it = page_faults("leave"), page_faults("keep")
    assert without > 100
    assert with_it < without / 10
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # whoever sets glibc up has the last word
    assert page_faults("keep") > without / 2
