"""Placements scored by replaying arrivals: what averages cannot see, bursts, decides here."""
