"""A worker of the campaign: reads a case a line (`ROW NUMBER`), tries it, writes a line of JSON.

    worker.py ROOT NUMBER SEED

It is started with the fault library preloaded and everything set to use one thread.
"""

import json
import os
import sys
import time
from pathlib import Path

from case_files import CaseFiles
from forked_commands import Lab
from outcomes import HANG, TRACEBACK, Verdict
from row import Row, chance

_TASKS = Path("/proc/self/task")


def environment(library: Path) -> dict[str, str]:
    """Of a worker: one thread, so that it may fork after kernels ran."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **one, "LD_PRELOAD": str(library), "PYTHONPATH": path}


def warm(lab: Lab, case_files: CaseFiles, *names: str) -> None:
    """Loads the kernels of these commands by running them in this very process, which stays single-threaded."""
    import torch

    from dqrm_cpu.cli.main import main

    torch.set_num_threads(1)
    folder = lab.fresh()
    for name in names:
        status = main([str(argument) for argument in case_files.commands(folder)[name]])
        assert status == 0, (name, status)
    deadline = time.monotonic() + 10  # the last threads of a preparation are still ending
    while len(list(_TASKS.iterdir())) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    threads = [(thread / "comm").read_text() for thread in _TASKS.iterdir()]
    assert len(threads) == 1, f"{threads}: a child of this process would hang"


def try_case(lab: Lab, row: Row, seed: int, number: int) -> dict[str, object]:
    """The verdict of a case as JSON; a mistake of the campaign itself is a defect, too."""
    began = time.monotonic()
    try:
        verdict = row.run(lab, chance(seed, row.name, number), number)
    except TimeoutError as error:
        verdict = Verdict(HANG, "the case itself", str(error))
    except Exception as error:
        import traceback

        verdict = Verdict(TRACEBACK, f"the campaign: {error!r}", traceback.format_exc()[-3000:])
    seconds = round(time.monotonic() - began, 3)
    return {"row": row.name, "case": number, "seconds": seconds, **verdict._asdict()}


def serve(root: Path, number: int, seed: int) -> None:
    """Until standard input ends."""
    import readers
    from rows import ROWS

    readers.load_modules()
    rows = {row.name: row for row in ROWS}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(root / f"worker-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    lab = Lab(root, number)
    case_files = CaseFiles(lab.case_files)
    case_files.write_raw()
    warm(lab, case_files, "prepare")
    case_files.build(lab)
    warm(lab, case_files, "train", "export")
    print(json.dumps({row.name: row.size(case_files) for row in ROWS}), file=answers, flush=True)
    for line in sys.stdin:
        name, case = line.split()
        print(json.dumps(try_case(lab, rows[name], seed, int(case))), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
