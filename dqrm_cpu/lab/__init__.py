"""What is done with the trainer rather than by it: benchmarks, the profiler, the tables of the paper run again."""
