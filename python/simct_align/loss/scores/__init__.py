"""How paths are scored, in PyTorch operations on ready-made log-probabilities."""
