"""Alignment in other people's trainers; each module says which, and imports it if it must."""
