"""One process per rank of a device group. The only place that imports torch."""
