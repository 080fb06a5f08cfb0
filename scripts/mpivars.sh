#!/bin/sh
# Intel MPI's mpirun sources this file from its own folder. The pip package impi-rt leaves it out, and mpirun then finds
# its parts only in an activated environment; with it, `.venv/bin/mpirun` works as it stands.
mpi_bin=$(cd "${0%/*}" && pwd)
I_MPI_ROOT=${mpi_bin%/bin}
PATH=$mpi_bin:$PATH
export I_MPI_ROOT PATH
unset mpi_bin
