"""Internal: namespace of the modules `trl`, `kdflow` and `nemo_rl`, one for each trainer.

A module imports its trainer only if it subclasses the trainer's classes.
"""
