"""`python -m ringrift_cluster` is `ringrift-node`."""

from ringrift_cluster.cli.main import main

main()
