"""One rank of a world that runs several commands, one after the other, over a transport that is opened once.

    run_world("mpi", several_commands(["train", "--run-dir", "a"], ["train", "--run-dir", "b"]), ranks=2)

The first command's configuration opens the transport. A world of its own for each command would start it anew.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence

from dqrm_cpu.api import ranks
from dqrm_cpu.cli.main import main
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config


def several_commands(*commands: Sequence[object]) -> list[str]:
    """What `run_world` runs for these commands, each a list of arguments of `dqrm-cpu`."""
    return [__file__, json.dumps([[str(argument) for argument in command] for command in commands])]


def run_commands(commands: Sequence[Sequence[str]]) -> int:
    """Runs them until one fails; returns its exit status, or 0."""
    with contextlib.ExitStack() as world:
        opened: list[Transport] = []
        open_transport = ranks.opened_transport

        @contextlib.contextmanager
        def opened_once(config: Config, note: Callable[[str], object] = print) -> Iterator[Transport]:
            if not opened:
                opened.append(world.enter_context(open_transport(config, note)))
            yield opened[0]

        ranks.opened_transport = opened_once
        return next((status for command in commands if (status := main(command))), 0)


if __name__ == "__main__":
    sys.exit(run_commands(json.loads(sys.argv[1])))
