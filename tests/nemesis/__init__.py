"""Real node processes in network namespaces, real faults, and a checker for what clients saw.

python -m tests.nemesis [SCENARIO ...] [--seconds 15] [--seed 1]    (root; `make nemesis`)
"""
