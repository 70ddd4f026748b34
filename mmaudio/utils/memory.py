"""Free memory of a device, within the limits of a container or a batch job."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""Linux control groups (version 2), which hold the memory limits of containers and batch jobs."""
PROCESS_CGROUP = Path("/proc/self/cgroup")
"""File that names the control group of this process."""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on a CPU at most what the control groups allow."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    headroom = cgroup_headroom(PROCESS_CGROUP, CGROUP)
    return available if headroom is None else min(available, headroom)


def cgroup_headroom(process_cgroup: Path, root: Path) -> int | None:
    """Smallest headroom in bytes of the control group in the file `process_cgroup` and of its parents; None: no limit.

    `root` is the folder of the groups; in a container it is the container's own group.
    """
    try:
        lines = process_cgroup.read_text().splitlines()
    except OSError:
        lines = []
    group = PurePosixPath(next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/"))
    groups = (group, *group.parents) if ".." not in group.parts else (PurePosixPath("/"),)  # "..": outside of `root`
    headrooms = (group_headroom(root / group.relative_to("/")) for group in groups)
    return min((headroom for headroom in headrooms if headroom is not None), default=None)


def group_headroom(folder: Path) -> int | None:
    """Bytes left below the memory limit of the control group in `folder`; None without a limit.

    The inactive file cache counts as free.
    """
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used) + int(statistics.get("inactive_file", 0)))
