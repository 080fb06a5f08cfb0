"""Run as a rank: writes what this process sees of its place to a file of its own in the folder given."""

import json
import os
import sys
from pathlib import Path


def libraries(process: int) -> list[str]:
    """Shared libraries that a process has mapped."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return sorted({Path(line.split()[-1]).name for line in lines if ".so" in line})


folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
rank = os.environ.get("PMI_RANK") or os.environ["SLURM_PROCID"]
seen = {
    "affinity": sorted(os.sched_getaffinity(0)),
    "environ": dict(os.environ),
    "libraries": libraries(os.getpid()),
    "libraries_of_starter": libraries(os.getppid()),
}
(folder / f"{rank}.json").write_text(json.dumps(seen))
