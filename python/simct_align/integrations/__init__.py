"""Internal: namespace of modules for trainers, one for each.

A module imports its trainer only if it subclasses classes of the trainer, or registers something
there.
"""
