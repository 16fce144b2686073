"""A run on disk: its number, its one writer, its state, its checkpoints, and the contents of its files.

In: paths, and values to write there; out: paths, values, and one-line errors. It may import only `suggestions`,
`yaml_files` and `checkpoint_files` (and what every room may). Not here: models, trainers, measures, the command line.
"""
