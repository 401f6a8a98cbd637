"""What a worker runs: one file per task family. `registry.load` finds the right one."""
