"""Where attempts live: on this machine, or on a host that has only an SSH server."""
