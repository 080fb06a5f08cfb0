"""Which GPU of its host a rank takes: one for each rank, in their order, whatever carries the gradients."""

import socket
from collections.abc import Sequence

import torch

from dqrm_cpu.comm.transports.launch import Launch
from dqrm_cpu.errors import DeviceError


def take_gpu(launch: Launch) -> torch.device:
    """Where CUDA is available; from here on it is what `cuda` means in this process.

    One that is another rank's as well is found out once the ranks can tell each other: a host that shows a single GPU
    may show another one to each rank, as `srun --gpus-per-task=1` has it.
    """
    gpu = torch.device("cuda", launch.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(gpu)
    return gpu


def gpu_in_use() -> torch.device:
    """What `cuda` means in this process."""
    return torch.device("cuda", torch.cuda.current_device())


def gpu_name(gpu: torch.device) -> str:
    """The same for all processes that see this GPU, and for no other GPU."""
    return f"GPU-{torch.cuda.get_device_properties(gpu).uuid} of {socket.gethostname()}"


def require_gpus_apart(names: Sequence[str]) -> None:
    """`names` by rank; raises the same DeviceError on all of them where two share a GPU."""
    for rank, name in enumerate(names):
        first = names.index(name)
        if first != rank:
            error = DeviceError(
                f"each rank needs a GPU of its own, and ranks {first} and {rank} both have {name}: start no more ranks "
                f"on a host than it has GPUs, or one process with --comm.simulated-ranks {len(names)}"
            )
            error.unanimous = True
            raise error
