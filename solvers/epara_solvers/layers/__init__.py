"""Layers of one model over unlike servers: splits found by search, and bounds proved by covering weights."""
