"""Internal: the commands of `simct-align`, one module each."""
