"""Text and columns of raw rows to labels, logarithms and keys of categories."""
