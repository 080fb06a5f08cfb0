"""What `import dqrm_cpu` offers, and what the command line does with it: functions, runs, a classifier."""
