"""What all benchmarks share: cases, batches, tables, contestants that take turns, results and their documents."""
