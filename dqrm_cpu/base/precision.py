"""The arithmetic in which an exported model multiplies: what `--products` and `Model.open(products=...)` may say."""

FP32 = "fp32"
"""Exact: the logits of the run to rounding."""

INT8 = "int8"
"""Layers of at most 8 bits multiply whole numbers: what they read is rounded to 8 bits."""

PRODUCTS = (FP32, INT8)
