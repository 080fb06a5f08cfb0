#!/bin/sh
# Intel MPI's mpirun sources this file from its own folder. The pip package impi-rt leaves it out, and mpirun then finds
# its parts only in an activated environment; with it, `.venv/bin/mpirun` works as it stands.
mpi_bin=$(cd "${0%/*}" && pwd)
I_MPI_ROOT=${mpi_bin%/bin}
PATH=$mpi_bin:$PATH
# When a rank is killed the others are to say which one and at what step, before they end: Hydra would kill them first.
: "${I_MPI_FAULT_CONTINUE:=1}"
export I_MPI_ROOT PATH I_MPI_FAULT_CONTINUE
unset mpi_bin
# mpirun becomes Hydra, which passes signals on to the ranks; a shell that waited for it would die of them alone, or keep
# them to itself. (With SGE the shell has a file to remove in the end.)
[ -n "${PE_HOSTFILE:-}" ] || alias mpiexec.hydra='exec mpiexec.hydra'
