"""The experiments by subject: accuracy, gradients between ranks, time, and what the paper does not have."""
