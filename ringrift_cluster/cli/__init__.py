"""`ringrift-node`: text for people, `--json` for programs, both from the same value.

main     who answers to the name            serve    start a node, start a development cluster
app      the commands, errors, exit codes   cluster, work, jobs, learning, state    what they say and do
output   tables and JSON                    options  what several commands take
                                            call     a command that talks to a node
"""
