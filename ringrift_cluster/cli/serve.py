"""Starting things: one node, or a whole development cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ringrift_cluster.cli.options import EXIT_USAGE, fail
from ringrift_cluster.members import SettingsError
from ringrift_cluster.settings import node_config
from ringrift_cluster.sources import Network, Role


def serve(
    cluster: Annotated[
        str | None,
        Option("--cluster", "--peers", help="The voters, the same on every node: [id=]host:port, separated by commas."),
    ] = None,
    node_id: Annotated[
        str | None, Option(help="This node's name; else its id in the list, or one made once and kept.")
    ] = None,
    role: Annotated[Role | None, Option(help="auto: a voter when the list names this node, else a follower.")] = None,
    port: Annotated[int | None, Option(help="HTTP port; else the one in the list, or 8770.")] = None,
    raft_port: Annotated[int | None, Option(help="Port between voters; else the HTTP port + 1.")] = None,
    bind: Annotated[str | None, Option("--bind", "--host", help="Address to listen on; else 127.0.0.1.")] = None,
    advertise: Annotated[
        str | None, Option("--advertise", "--advertise-host", help="host[:port] under which others reach this node.")
    ] = None,
    advertise_port: Annotated[int | None, Option(help="Port under which others reach this node.")] = None,
    data_dir: Annotated[Path | None, Option(help="Log, snapshots, jobs and files; one process at a time.")] = None,
    log_level: Annotated[str | None, Option(help="DEBUG, INFO, WARNING or ERROR.")] = None,
    cpu_slots: Annotated[int | None, Option(help="Workload processes without a GPU; else one a core.")] = None,
    max_processes: Annotated[
        int | None, Option(help="Jobs at the same time, whatever they need; 0: twice the slots and GPUs, at least 32.")
    ] = None,
    starts_per_s: Annotated[float | None, Option(help="Jobs started in a second, at most.")] = None,
    reserve_cpus: Annotated[
        int | None, Option(help="Cores that jobs may not use; else one on a voter with four or more, none elsewhere.")
    ] = None,
    notice_file: Annotated[
        Path | None, Option(help="A file that appears when the provider takes this machine away.")
    ] = None,
    notice_command: Annotated[str | None, Option(help="A command that exits with 0 when it does.")] = None,
    notice_url: Annotated[str | None, Option(help="A URL that answers 200 when it does.")] = None,
    notice_every_s: Annotated[float | None, Option(help="How often the three are looked at.")] = None,
    disk_floor_percent: Annotated[float | None, Option(help="Free share of the disk under which it is low.")] = None,
    disk_floor_gib: Annotated[float | None, Option(help="Free GiB under which it is low; both must be so.")] = None,
    labels: Annotated[str | None, Option(help="Words that work items can ask for, separated by commas.")] = None,
    store_bytes: Annotated[
        str | None, Option(help="Quota of the store of files, such as 500GB; else 0, which is none.")
    ] = None,
    transfer_bytes_per_s: Annotated[
        str | None, Option(help="What transfers of files take a second in each direction, such as 12MB; else no bound.")
    ] = None,
    object_store: Annotated[
        str | None, Option(help="A bucket that holds files too: s3://BUCKET/PREFIX (needs ringrift-cluster[s3]).")
    ] = None,
    object_store_endpoint: Annotated[str | None, Option(help="Its address, when it is not Amazon's.")] = None,
    object_store_region: Annotated[str | None, Option(help="Its region; else AWS_REGION, or us-east-1.")] = None,
    object_store_credentials_file: Annotated[
        Path | None, Option(help="File with its credentials, like ~/.aws/credentials; else AWS_... variables.")
    ] = None,
    auth_token_file: Annotated[Path | None, Option(help="File with the token that is good for everything.")] = None,
    join_token_file: Annotated[
        Path | None, Option(help="File with the join token that a follower buys its own token with, once.")
    ] = None,
    cluster_secret_file: Annotated[Path | None, Option(help="File with the secret that voters share.")] = None,
    tls_cert: Annotated[Path | None, Option(help="This node's certificate (PEM); see `ringrift-node certs`.")] = None,
    tls_key: Annotated[Path | None, Option(help="Its private key (PEM).")] = None,
    tls_ca: Annotated[Path | None, Option(help="The cluster's authority (PEM); alone: a client only.")] = None,
    tls_transition: Annotated[
        bool | None, Option("--tls-transition", help="Plain text is taken too, while the cluster moves to TLS.")
    ] = None,
    insecure: Annotated[
        bool | None, Option("--insecure", help="Allow a bind beyond loopback without TLS or without tokens.")
    ] = None,
    network: Annotated[Network | None, Option(help="fast: one site; wide: several.")] = None,
    stop_jobs: Annotated[
        bool | None, Option("--stop-jobs/--leave-jobs", help="On SIGTERM stop jobs, or leave them for adoption.")
    ] = None,
    stop_grace_s: Annotated[float | None, Option(help="Seconds to hand over and close.")] = None,
    fresh_within_s: Annotated[float | None, Option(help="Oldest view that a follower's fresh reads show.")] = None,
    snapshot_every_entries: Annotated[int | None, Option(help="Entries between two snapshots of this node.")] = None,
    progress_every_s: Annotated[float | None, Option(help="How often jobs' progress is reported.")] = None,
    ssh_key_file: Annotated[Path | None, Option(help="Private key for hosts without an agent.")] = None,
    ssh_known_hosts_file: Annotated[Path | None, Option(help="Public keys of hosts whose setting pins none.")] = None,
    ssh_jobs: Annotated[int | None, Option(help="Jobs on all hosts without an agent together; 0: no bound.")] = None,
    ssh_transfers: Annotated[int | None, Option(help="Files sent to and fetched from them at a time.")] = None,
    exit_with_parent: Annotated[
        int | None, Option(metavar="PID", help="Leave when this process, which started the node, is gone; 0: stay.")
    ] = None,
    fail_on_subscription_failure: Annotated[
        bool | None, Option("--fail-on-subscription-failure", help="Accepted for old unit files.", hidden=True)
    ] = None,
    config: Annotated[Path | None, Option(help="Settings file (TOML); see deploy/node.example.toml.")] = None,
) -> None:
    """Run this node until it is told to leave.

    Flags win over RINGRIFT_... variables, those over the settings file, that over the defaults.
    Exit code 0: left in order. 2: it cannot start, and the sentence on stderr says what to change.
    70: it stopped by itself, and a restart alone does not mend it. 75: start it again; its voters are of another
    cluster now, or it was to begin anew and its disk hung.
    """
    from ringrift_cluster.process import serve as run_node

    flags = dict(locals())
    for not_a_setting in ("config", "run_node"):
        flags.pop(not_a_setting)
    try:
        decided = node_config(flags, config)
    except SettingsError as error:
        raise fail(str(error), EXIT_USAGE) from error
    raise typer.Exit(run_node(decided))


def dev(
    data_dir: Annotated[Path, Option(help="Where the whole cluster lives.")] = Path(".demo"),
    fresh: Annotated[bool, Option("--fresh", help="Start anew instead of going on.")] = False,
    until_promotions: Annotated[int | None, Option(help="Stop after so many promotions; exit code 0.", min=1)] = None,
    minutes: Annotated[float | None, Option(help="Stop after this time; exit code 1 without the promotions.")] = None,
    voters: Annotated[int, Option(help="Nodes that vote.", min=1, max=7)] = 3,
    followers: Annotated[int, Option(help="Nodes that do not.", min=0, max=64)] = 2,
    base_port: Annotated[int, Option(help="First port of the block that the nodes use.")] = 8770,
    headless: Annotated[bool, Option("--headless", help="No live picture: one line now and then.")] = False,
) -> None:
    """Start a whole cluster on this machine and watch it learn. Ctrl-C stops it; the next start goes on.

    Exit code 0: stopped, or the goal is reached. 1: the goal is not reached in time. 2: it cannot start.
    """
    from ringrift_cluster.dev import DevOptions, main

    options = DevOptions(
        data_dir=data_dir,
        fresh=fresh,
        until_promotions=until_promotions,
        minutes=minutes,
        voters=voters,
        followers=followers,
        base_port=base_port,
        headless=headless,
    )
    raise typer.Exit(main(options))
