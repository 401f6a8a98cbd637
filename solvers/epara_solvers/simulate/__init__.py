"""Plans held against arrivals: what of a plan's promise is on time when requests come in bursts."""
