"""Evaluation: how well an adapter draws what it never saw, for every way of choosing backbone pictures."""
