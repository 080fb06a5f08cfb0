"""`bench kernels`: the kernels of a step one by one."""
