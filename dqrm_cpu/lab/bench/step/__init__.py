"""`bench step` and `bench spans`: whole training steps, ours, PyTorch's and FBGEMM's."""
