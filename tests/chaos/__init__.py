"""Real nodes whose processes are killed at random while many short jobs run: `python -m tests.chaos`."""
