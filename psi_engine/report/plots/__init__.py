"""Figures, each drawn from the tables of one part and nothing else."""
