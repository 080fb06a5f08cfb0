"""The second pass: the split, rare categories, and shards out of the spool."""
