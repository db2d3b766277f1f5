"""`ranksearch submit ray|slurm`: the same run as a batch job."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ranksearch.cli.run import run
from ranksearch.cluster import RayJob, RunCommand, SlurmJob, environment_to_send, follow, sbatch, send
from ranksearch.cluster.ray_job import DEFAULT_ADDRESS
from ranksearch.settings import TABLES, Settings

__all__ = ["app"]

app = typer.Typer(help="Send a run to a cluster.", no_args_is_help=True)

RunFlags = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- RUN_FLAGS…", help="After `--`: the flags of `ranksearch run`."),
]
Python = Annotated[str, typer.Option(help="The Python interpreter on the cluster.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the job and send nothing.")]


@app.command()
def ray(
    run_flags: RunFlags = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the Ray cluster.")
    ] = DEFAULT_ADDRESS,
    working_dir: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="A folder to copy there. When absent, the job runs in this one."
        ),
    ] = None,
    submission_id: Annotated[str | None, typer.Option(help="The job's name; by default made from its content.")] = None,
    entrypoint_cpus: Annotated[float, typer.Option(help="Cores to set aside for the driver.")] = 0,
    python: Python = sys.executable,
    send_secrets: Annotated[
        bool, typer.Option("--send-secrets", help="Send variables with passwords too; Ray logs them in plain.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show the job's output; exit with its exit code.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Send a run to a Ray cluster as a Ray Job. Prints its submission id."""
    folder = (working_dir or Path()).resolve()
    command = RunCommand(flags=tuple(run_flags or ()))
    job = RayJob(
        command=command,
        working_dir=str(folder),
        copies_working_dir=working_dir is not None,
        storage=_settings(command, folder).storage,
        address=address,
        python=python,
        submission_id=submission_id,
        entrypoint_cpus=entrypoint_cpus,
        env_vars=environment_to_send(os.environ, send_secrets=send_secrets),
    )
    if dry_run:
        print(json.dumps(job.shown(), indent=2))
        return
    sent = send(job)
    print(sent, flush=True)
    if wait:
        raise typer.Exit(follow(address, sent, sys.stderr.write))


@app.command()
def slurm(
    run_flags: RunFlags = None,
    nodes: Annotated[int, typer.Option(help="Number of nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each node.")] = 0,
    cpus_per_node: Annotated[int | None, typer.Option(help="Cores of each node.")] = None,
    time: Annotated[str, typer.Option(help="Time limit, HH:MM:SS or D-HH:MM:SS.")] = "04:00:00",
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    job_name: Annotated[str, typer.Option(help="Name of the job.")] = "ranksearch",
    output_dir: Annotated[Path, typer.Option(help="Where the script and the job's output go.")] = Path("slurm"),
    template: Annotated[
        str, typer.Option(help="symmetric: whole nodes. head-worker: nodes may be shared with other jobs.")
    ] = "symmetric",
    python: Python = sys.executable,
    dry_run: DryRun = False,
) -> None:
    """Send a run to a Slurm cluster as a batch job that resumes itself. Prints its job id."""
    command = RunCommand(flags=tuple(run_flags or ()))
    _settings(command, Path.cwd())
    job = SlurmJob(
        command=command,
        working_dir=str(Path.cwd()),
        output_dir=str(output_dir.resolve()),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        time=time,
        partition=partition,
        account=account,
        job_name=job_name,
        template=template,
        python=python,
    )
    print(job.script() if dry_run else sbatch(job), end="" if dry_run else "\n")


def _settings(command: RunCommand, folder: Path) -> Settings:
    """What `ranksearch run` will make of its flags in `folder`. Raises now what it would say about them there."""
    program = typer.Typer(add_completion=False)
    program.command("run")(run)
    given = typer.main.get_command(program).make_context("ranksearch run", list(command.flags)).params
    flags: dict[str, Any] = {}
    for name in (name for name, value in given.items() if value is not None):
        table, _, key = name.partition("_")
        if table in TABLES:
            flags.setdefault(table, {})[key] = given[name]
        elif name in Settings.model_fields:
            flags[name] = given[name]
    with contextlib.chdir(folder):
        return Settings.read(flags, given["config"])
