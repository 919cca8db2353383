"""Leader-only policies: pure functions of the state that return commands.

Each file decides one thing. All are level-triggered: they look at what is, not at what happened, so a missed
event, a repeat or a new leader changes nothing. `runner` performs them and keeps count.
"""
