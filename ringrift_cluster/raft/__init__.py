"""The raft room: a voter's consensus on pysyncobj, with its transport, journal and snapshots.

`node.RaftNode` is the synchronous heart and takes time, randomness, links and storage from outside;
`engine.RaftReplica` runs it in a thread of its own.
"""
