"""`python -m dqrm_cpu` is `dqrm-cpu`."""

import sys

from dqrm_cpu.cli.main import main

sys.exit(main())
