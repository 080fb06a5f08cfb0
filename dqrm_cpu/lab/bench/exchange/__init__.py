"""`bench exchange`: gradients between ranks."""
