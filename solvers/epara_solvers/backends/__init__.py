"""One module per vendor. Each is imported only inside a process of its own: see epara_solvers.process."""
