"""Requests to nodes that nobody can dial: they ride on a connection that the node itself holds open to a voter.

    caller -> any node -> the voter that has the node's channel == frames ==> follower      GET /relay/channel
                                                               <-- answer -- follower      POST /relay/answers/ID

The channel is the long answer to one request of the follower: frames with one request each come down it. Each answer
goes up as a request of its own, so many run side by side, a slow reader holds up nobody but its own answer, and a
channel that moves to another voter breaks none that is under way.

    passages       what may pass at all, and what a caller needs for it
    frames         the bytes of both ways
    switchboard    a voter's end: who holds a channel here, who waits for which answer
    channel        a follower's end: one open channel, and answers from the node's own face
    inside         a request to the node's own face without a socket
"""
