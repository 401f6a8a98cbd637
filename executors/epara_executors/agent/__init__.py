"""One agent per server: request handler, control plane, supervision of workers. Imports no torch."""
