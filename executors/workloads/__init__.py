"""The built-in workloads: games, search, selfplay, training and evaluation as ordinary programs."""
