"""A study as a batch job: what is sent to a Ray cluster, and the script that Slurm runs."""

from ranksearch.cluster.command import RunCommand
from ranksearch.cluster.ray_client import follow, send
from ranksearch.cluster.ray_job import RayJob, environment_to_send
from ranksearch.cluster.slurm_job import SlurmJob, sbatch

__all__ = ["RayJob", "RunCommand", "SlurmJob", "environment_to_send", "follow", "sbatch", "send"]
