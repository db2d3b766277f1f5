"""The batch scripts: golden files, what Slurm reads of them, and what they do when they run."""

import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from ranksearch.cluster import RunCommand, SlurmJob, sbatch
from ranksearch.cluster.slurm_job import TEMPLATES
from ranksearch.errors import ConfigError
from tests.cluster.argv import ARGUMENTS, arguments_in, write_echo, write_program
from tests.cluster.slurm_site import Site, end

GOLDEN = Path(__file__).with_name("golden")


def job(*flags: str, **settings: Any) -> SlurmJob:
    fixed = {"working_dir": "/home/ada/net", "output_dir": "/home/ada/net/slurm", "python": "/opt/venv/bin/python"}
    return SlurmJob(**{"command": RunCommand(flags=flags)} | fixed | settings)


# --- the text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golden", "written"),
    [
        (
            "slurm_symmetric.sh",
            job(
                *("--budget", "200", "--model", "net.py:make net"),
                nodes=2,
                gpus_per_node=4,
                cpus_per_node=32,
                time="1-00:00:00",
                partition="gpu,big",
                account="lab",
                job_name="nightly",
                output_dir="/home/ada/my runs",
            ),
        ),
        ("slurm_head_worker.sh", job("--budget", "200", template="head-worker")),
    ],
)
def test_the_script_is_the_golden_one(golden: str, written: SlurmJob) -> None:
    assert written.script() == (GOLDEN / golden).read_text()


@pytest.mark.parametrize("template", TEMPLATES)
@given(flags=ARGUMENTS)
@settings(max_examples=15, deadline=None)
def test_bash_reads_the_script_and_the_run_gets_exactly_its_flags(template: str, echo: Path, flags: list[str]) -> None:
    script = job(*flags, template=template, python=str(echo)).script()
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    head, marker, _ = script.partition("\nnum_gpus=")
    assert marker
    done = subprocess.run(["bash"], input=f'{head}\n"${{run[@]}}"\n'.encode(), capture_output=True, check=True)
    assert arguments_in(done.stdout) == ["-m", "ranksearch", "run", *flags]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_echo(tmp_path_factory.mktemp("bin") / "py thon")


@pytest.mark.parametrize("template", TEMPLATES)
def test_slurm_reads_every_option(template: str) -> None:
    """It stops at the first line that is not a comment; the shell must not fork before it."""
    lines = job(template=template).script().splitlines()
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    options = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash"
    assert options == list(range(1, len(options) + 1))
    assert options[-1] < first_command


@pytest.mark.parametrize("template", TEMPLATES)
def test_it_can_come_back(template: str) -> None:
    options = re.findall(r"^#SBATCH --(\S+)$", job(template=template).script(), re.MULTILINE)
    assert {"requeue", "open-mode=append", "signal=B:USR2@120", "ntasks-per-node=1"} <= set(options)
    assert ("exclusive" in options) == (template == "symmetric")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": 0}, "nodes is 0; it must be 1 or more"),
        ({"gpus_per_node": -1}, "gpus per node is -1"),
        ({"cpus_per_node": 0}, "cpus per node is 0"),
        ({"time": "4h"}, "time is '4h'; write HH:MM:SS"),
        ({"time": "04:60:00"}, "write HH:MM:SS"),
        ({"time": "120"}, "write HH:MM:SS"),
        ({"time": "00:09:59"}, "at least 10 minutes"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, "partition is 'gpu"),
        ({"account": "a b"}, "account is 'a b'"),
        ({"job_name": "../x"}, "job name is '../x'"),
        ({"job_name": ""}, "job name is ''"),
        ({"output_dir": 'a"b'}, "output dir is"),
        ({"output_dir": "relative"}, "output dir is 'relative'"),
        ({"working_dir": "/a\nb"}, "working dir is"),
        ({"template": "symetric"}, r"template is 'symetric'.*did you mean 'symmetric'"),
        ({"command": RunCommand(flags=("--address=auto",))}, "--address cannot be given"),
    ],
)
def test_what_slurm_could_not_run_is_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        job(**settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("time", ["00:10:00", "100:00:00", "0-00:10:00", "7-23:59:59"])
def test_times_as_slurm_writes_them(time: str) -> None:
    assert f"#SBATCH --time={time}\n" in job(time=time).script()


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    built = Site.build(tmp_path)
    yield built
    for *_, folder in built.environments():
        shutil.rmtree(folder, ignore_errors=True)


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start_job(template: str, *flags: str, nodes: int = 1, **behaviour: Any) -> subprocess.Popen[bytes]:
        script = job(*flags, template=template, nodes=nodes, python=site.python).script()
        started.append(site.start(script, nodes=nodes, **behaviour))
        return started[-1]

    yield start_job
    for process in started:
        end(process)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("code", [0, 1, 3, 75])
def test_the_job_ends_as_the_run_does_and_goes_back_into_the_queue_with_75_alone(
    site: Site, start: Start, template: str, nodes: int, code: int
) -> None:
    process = start(template, "--budget", "2", run=f"exit {code}", nodes=nodes)
    assert process.wait(timeout=20) == code
    ip = "127.0.0.1" if nodes == 1 else "10.0.0.7"
    assert site.calls("python -m") == [f"python -m ranksearch run --budget 2 --address {ip}:28484"]
    assert site.calls("scontrol") == ["scontrol requeue 4242"] * (code == 75)
    folder = Path(site.environments()[0][-1])
    assert folder.exists() == (code not in (0, 75))  # Ray's logs are worth keeping when something went wrong


@pytest.mark.parametrize("code", [75, 0, 3])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_signal_reaches_the_run_and_its_answer_counts(site: Site, start: Start, template: str, code: int) -> None:
    """Back into the queue once it has left with 75; not when its search was done, or had failed, by then."""
    process = start(template, run=f"listen {code}")
    site.wait_for("running")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=20) == code
    after = site.calls()[site.calls().index("the run leaves") + 1 :]
    assert site.calls("scontrol") == ["scontrol requeue 4242"] * (code == 75)
    assert set(site.calls("scontrol")) <= set(after)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_run_that_the_signal_kills_goes_back_into_the_queue(site: Site, start: Start, template: str) -> None:
    process = start(template, run="deaf")
    site.wait_for("running")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=20) == 75
    assert site.calls("scontrol") == ["scontrol requeue 4242"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_signal_before_the_run_has_begun_puts_the_job_back_at_once(site: Site, start: Start, template: str) -> None:
    process = start(template, run="listen 75", start_seconds=20)
    site.wait_for_call("ray symmetric-run" if template == "symmetric" else "python - ")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=10) == 75
    assert site.calls("scontrol") == ["scontrol requeue 4242"]
    assert not site.calls("python -m")


@pytest.mark.parametrize("code", [0, 3, 75])
def test_the_signal_after_the_run_has_ended_changes_nothing(site: Site, start: Start, code: int) -> None:
    process = start("symmetric", run=f"exit {code}", end_seconds=0.5)
    site.wait_for("over")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=20) == code
    assert site.calls("scontrol") == ["scontrol requeue 4242"] * (code == 75)


def test_ray_has_ended_before_its_folder_goes(site: Site, start: Start) -> None:
    assert start("head-worker", run="exit 0", nodes=2).wait(timeout=20) == 0
    *_, first, second, last = site.calls()
    assert (first, second) == ("ray has ended",) * 2
    assert last.startswith("srun ")
    assert f"--nodes=2 rm -rf -- {site.environments()[0][-1]}" in last


def test_nodes_that_do_not_come_up_end_the_job_for_good(site: Site, start: Start) -> None:
    assert start("head-worker", run="exit 0", nodes_code=1).wait(timeout=20) == 1
    assert not site.calls("python -m")
    assert not site.calls("scontrol")


def test_two_nodes_start_one_head_and_the_rest_as_workers(site: Site, start: Start) -> None:
    assert start("head-worker", run="exit 0", nodes=3).wait(timeout=20) == 0
    heads = [call for call in site.calls("ray start") if "--head" in call]
    assert len(heads) == 1
    assert "--node-ip-address=10.0.0.7 --port=28484 " in heads[0]
    assert len(site.calls("srun")) == 2
    assert "--nodes=2 --exclude=node-1 " in site.calls("srun")[0]
    assert site.calls("srun")[0].endswith("--address 10.0.0.7:28484")
    assert [call.split()[-1] for call in site.calls("python - ")] == ["1", "3"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_ray_is_this_jobs_own_and_nobody_elses(site: Site, start: Start, template: str) -> None:
    """A token for the job, that stands in no command line; a folder for it; and no other cluster's address."""
    for _ in range(2):
        assert start(template, run="exit 1").wait(timeout=20) == 1
    modes, tokens, addresses, folders = zip(*site.environments(), strict=True)
    assert set(modes) == {"token"}
    assert set(addresses) == {"none"}
    assert len(set(tokens)) == len(set(folders)) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens)
    assert not any(token in call for call in site.calls() for token in tokens)
    assert all(Path(folder).stat().st_mode & 0o777 == 0o700 for folder in folders)
    calls = "\n".join(site.calls())
    assert "0.0.0.0" not in calls
    assert "--dashboard-host" not in calls


@pytest.mark.parametrize("template", TEMPLATES)
def test_jobs_of_one_node_have_different_ports(site: Site, start: Start, template: str) -> None:
    for job_id in (7, 8):
        assert start(template, run="exit 0", job_id=job_id).wait(timeout=20) == 0
    ports = [int(call.rpartition(":")[2]) for call in site.calls("python -m")]
    assert len(set(ports)) == 2
    assert all(20000 <= port < 30000 for port in ports)  # Ray's workers have 10002 to 19999, the system 32768 and up


# --- sbatch ----------------------------------------------------------------------------------------------------------


def test_the_script_is_written_and_handed_to_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "sbatch", f'echo "$*" >{tmp_path}/called; echo "123;cluster"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    sent = job(output_dir=str(tmp_path / "new" / "runs"))
    assert sbatch(sent) == "123"
    assert (tmp_path / "called").read_text() == f"--parsable {tmp_path}/new/runs/ranksearch.sh\n"
    assert sent.path.read_text() == sent.script()


def test_what_sbatch_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "sbatch", 'echo "sbatch: error: invalid partition" >&2\nexit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match=r"sbatch refused .*invalid partition"):
        sbatch(job(output_dir=str(tmp_path)))


def test_without_slurm_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no `sbatch` here"):
        sbatch(job(output_dir=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "sbatch", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write .*--output-dir"):
        sbatch(job(output_dir=str(tmp_path / "file" / "runs")))
