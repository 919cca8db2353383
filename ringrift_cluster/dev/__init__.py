"""`ringrift-node dev`: a whole cluster on this machine, to watch, to kill and to develop against.

processes    starts the nodes, starts them again when they die (as a service unit would), stops them
observer     reads what there is to show from whichever node answers
view         the live terminal picture
report       the summary and the Elo chart at the end
session      ties them together
"""

from __future__ import annotations

from ringrift_cluster.dev.session import DevOptions, main

__all__ = ["DevOptions", "main"]
