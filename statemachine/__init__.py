"""The law: rows, commands, transitions and queries of the replicated state.

Everything here is a pure function of its arguments. No clock, no randomness, no files, no
sockets, no threads: whatever needs them is decided by the proposer and written in the command.
"""
