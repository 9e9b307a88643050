"""Training: one loop for the surrogate and the final run, its adapter, its checkpoints."""
