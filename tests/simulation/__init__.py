"""The voter's code under a virtual clock, network and disk. A run is a seed.

python -m tests.simulation --seeds 100 --first-seed 1 --jobs 2
python -m tests.simulation --seed 17 --trace
"""
