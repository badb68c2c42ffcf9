"""Internal: the scores of paths, in PyTorch operations on ready-made log-probabilities."""
