"""Which GPU of its host a rank takes: one for each rank, in their order, whatever carries the gradients."""

import socket
from collections.abc import Sequence

import torch

from dqrm_cpu.comm.transports.launch import Launch
from dqrm_cpu.errors import DeviceError, unanimous


def take_gpu(launch: Launch) -> torch.device:
    """Chooses this rank's GPU; from here on it is what `cuda` means in this process. CUDA must be available.

    One that is another rank's as well is found out once the ranks can tell each other: a host that shows a single GPU
    may show another one to each rank, as `srun --gpus-per-task=1` has it.
    """
    gpu = torch.device("cuda", launch.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(gpu)
    return gpu


def gpu_in_use() -> torch.device:
    """Returns the GPU that `cuda` means in this process."""
    return torch.device("cuda", torch.cuda.current_device())


def gpu_name(gpu: torch.device) -> str:
    """Returns a name that is the same for all processes that see this GPU, and for no other GPU."""
    return f"GPU-{torch.cuda.get_device_properties(gpu).uuid} of {socket.gethostname()}"


def require_distinct_gpus(names: Sequence[str]) -> None:
    """Raises the same DeviceError on all ranks where two share a GPU; `names` holds their GPUs, by rank."""
    for rank, name in enumerate(names):
        first = names.index(name)
        if first != rank:
            raise unanimous(
                DeviceError(
                    f"each rank needs a GPU of its own, and ranks {first} and {rank} both have {name}: start no more "
                    f"ranks on a host than it has GPUs, or one process with --comm.simulated-ranks {len(names)}"
                )
            )
