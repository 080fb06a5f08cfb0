"""Runs `dqrm-cpu` with a limit on the memory that this process may write to: with_limit.py BYTES ARGUMENTS..."""

import resource
import sys

from dqrm_cpu.cli.main import main

if __name__ == "__main__":
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.exit(main(sys.argv[2:]))
