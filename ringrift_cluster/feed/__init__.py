"""Followers: the committed log over HTTP, from any voter (or follower) to any number of nodes.

    voter or follower                                 follower
    FeedRouter   GET /feed/snapshot  -- file -->      FeedReplica: machine at (cluster, index, chain)
                 GET /feed/entries   -- stream -->    applies, compares the chain after every entry
                 POST /propose       <-- commands --  waits until it has applied what it was told

All these connections go from the follower out, so the log reaches it behind any NAT. What others ask of a
follower comes through its channel (see `relay`).
"""
