"""Planners: greedy (no vendor needed) and exact (a mixed-integer program through a back end)."""
