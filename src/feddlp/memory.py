"""How much memory there is, and how much a piece of work takes at its peak."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from feddlp.files import MIB

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMINFO, CGROUPS, CGROUP_ROOT = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def reset_peak() -> None:
    """Forget earlier peaks, where the system can (a GPU; Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        CLEAR.write_text("5")
    except OSError:
        return


def peak_mib() -> float:
    """The most memory used since the last reset, in MiB: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    return of_this_process("VmHWM:") / MIB


def used_bytes(device: torch.device) -> int:
    """What this process holds now: of the GPU's memory, or resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return of_this_process("VmRSS:")


def of_this_process(key: str) -> int:
    """Resident memory in bytes, now or at its peak; where there is no /proc, the largest ever."""
    found = listed(STATUS, key)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if found is None else found


def free_bytes(device: torch.device) -> int:
    """What this process could still take: of the GPU's memory, or of the machine's within its cgroups."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = listed(MEMINFO, "MemAvailable:")
    if available is None:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - used_bytes(device)
    return max(0, min([available, *cgroup_rests()]))


def listed(path: Path, key: str) -> int | None:
    """A number of kB in one of the files under /proc, in bytes; None where there is none."""
    try:
        line = next(line for line in path.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def cgroup_rests() -> list[int]:
    """Limit minus use of every control group (v1 or v2) that this process is in and that has a limit."""
    try:
        lines = [line.split(":", 2) for line in CGROUPS.read_text().splitlines()]
    except OSError:
        return []
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    rests = []
    for _, controllers, inside in lines:
        if controllers in names:
            root = CGROUP_ROOT / controllers
            group = root / inside.strip("/")
            groups = [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
            rests += [rest_of(folder, *names[controllers]) for folder in groups]
    return [rest for rest in rests if rest is not None]


def rest_of(folder: Path, limit: str, usage: str) -> int | None:
    """What one control group has left, counting the page cache that it could drop; None where it sets no limit."""
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, usage))
        entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = int(entries.get("total_inactive_file", entries.get("inactive_file", 0)))
        return int(most) - int(used) + cache
    except (OSError, ValueError):
        return None
