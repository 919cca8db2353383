"""The far end of a driver: runs on a host that has an SSH server and Python 3.8, for as long as one connection lives.

It reads requests from its standard input and answers on its standard output, and keeps nothing between two of
them: what matters is in files, and the keepers of attempts live in sessions of their own. A connection that is
cut ends it and nothing else. This package, `shim` and `keepers` are all that is sent to a host.

    <root>/lib/DIGEST/...     this program, as sent by the release of that digest
    <root>/owner              the incarnation of the agent that may start anything here
    <root>/jobs/NAME/...      the folder of an attempt, as on a node
    <root>/checkpoints/...    kept across attempts
    <root>/files/DIGEST       inputs by sha256; DIGEST.partial is on its way
"""
