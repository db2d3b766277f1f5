"""`ranksearch submit ray|slurm`: the same run as a batch job."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ranksearch.cluster import RayJob, RunCommand, SlurmJob, environment_to_send, follow, sbatch, send
from ranksearch.cluster.ray_job import DEFAULT_ADDRESS
from ranksearch.settings import Settings

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
        Path | None, typer.Option(help="A folder to copy to the cluster: your model and data code.")
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
    command = RunCommand(flags=tuple(run_flags or ()))
    folder = (working_dir or Path()).resolve()
    job = RayJob(
        command=command.with_lasting_storage(_storage(command, folder), folder),
        address=address,
        python=python,
        working_dir=str(folder) if working_dir else None,
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


def _storage(command: RunCommand, folder: Path) -> str | None:
    """The database of a run that starts in `folder`."""
    storage, config = command.value_of("--storage"), command.value_of("--config")
    with contextlib.chdir(folder):
        return Settings.read({"storage": storage} if storage else {}, Path(config) if config else None).storage


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
    job = SlurmJob(
        command=RunCommand(flags=tuple(run_flags or ())),
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
