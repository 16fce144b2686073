"""A run on disk: its number, its one writer, its state, its checkpoints, and what its files say.

Comes in: paths, and what is to be written there. Stays out: models, trainers, measures and the command line.
"""
