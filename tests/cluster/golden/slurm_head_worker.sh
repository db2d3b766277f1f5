#!/bin/bash
#SBATCH --job-name=ranksearch
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --chdir=/home/ada/net
#SBATCH --output=/home/ada/net/slurm/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
# From `ranksearch submit slurm`: leaves in time, and comes back until the search is done.

export PATH=/opt/venv/bin:"$PATH"
run=(/opt/venv/bin/python -m ranksearch run --budget 200)
num_gpus=0

# --- what both templates need ------------------------------------------------------------------------------------------

# This script runs on the first node, which becomes Ray's head. On one node nothing listens beyond loopback; on several
# Ray listens on the network, behind a token that is made for this job and known to it alone.
if [ "$SLURM_JOB_NUM_NODES" -eq 1 ]; then
    head_ip=127.0.0.1
else
    head_ip=$(hostname -I | cut -d' ' -f1) # several networks? Write the right address here.
fi
port=$((20000 + SLURM_JOB_ID % 5000 * 2)) # outside the ports that Ray gives its workers
address="$head_ip:$port"
num_cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}

RAY_TMPDIR=$(mktemp -d /tmp/ranksearch-XXXXXX) || exit 1 # short: the paths of Ray's sockets have to fit in 107 bytes
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
unset RAY_ADDRESS # of another cluster
export RAY_TMPDIR RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds

# How the run is started: it leaves its process id for the signal that is to come, and its exit code.
driver='(echo $BASHPID >"$RAY_TMPDIR/driver.pid"; exec "$@") & wait $!; echo $? >"$RAY_TMPDIR/driver.code"'
# How Ray is started on a node: in a folder that others cannot read.
node='mkdir -p -m 700 "$RAY_TMPDIR" && exec "$@"'
# srun gives a step one core unless told, and binds it to that.
step=(srun --export=ALL --ntasks-per-node=1 --cpus-per-task="$num_cpus" --cpu-bind=none)

# The end: with 75 the job goes back into the queue under its own id.
finish() {
    if [ "$1" -eq 75 ]; then
        echo "told to leave: job $SLURM_JOB_ID goes back into the queue" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
    kill $(jobs -p) 2>/dev/null
    wait
    case $1 in
        0) "${step[@]}" --nodes="$SLURM_JOB_NUM_NODES" rm -rf -- "$RAY_TMPDIR" ;;
        75) rm -rf -- "$RAY_TMPDIR" ;;
        *) echo "ranksearch ended with $1; Ray's logs are in $RAY_TMPDIR on every node" >&2 ;;
    esac
    exit "$1"
}

# Two minutes before the end: tell the run, if it has started and not ended.
leave() {
    [ -e "$RAY_TMPDIR/driver.code" ] && return
    kill -USR2 "$(cat "$RAY_TMPDIR/driver.pid" 2>/dev/null)" 2>/dev/null || finish 75
}
trap leave USR2

# --- Ray, and the run ---------------------------------------------------------------------------------------------------

# Ports and folders are this job's own, so that several may share a node.
ray_start=(ray start --block --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0
    --num-cpus="$num_cpus" --num-gpus="$num_gpus")

wait_for_nodes() {
    python - "$address" "$1" <<'PYTHON' &
import sys, time
import ray

deadline = time.monotonic() + 300
while True:
    try:
        ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        if sum(node["Alive"] for node in ray.nodes()) >= int(sys.argv[2]):
            break
    except ConnectionError:
        pass
    if time.monotonic() > deadline:
        sys.exit(f"{sys.argv[2]} nodes of Ray did not come up at {sys.argv[1]} within 300 s")
    time.sleep(1)
PYTHON
    wait $! || finish 1
}

"${ray_start[@]}" --head --node-ip-address="$head_ip" --port="$port" --ray-client-server-port=$((port + 1)) \
    --include-dashboard=false &
wait_for_nodes 1
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    "${step[@]}" --nodes="$others" --exclude="$SLURMD_NODENAME" bash -c "$node" node \
        "${ray_start[@]}" --address "$address" &
    wait_for_nodes "$SLURM_JOB_NUM_NODES"
fi
bash -c "$driver" driver "${run[@]}" --address "$address" &
job=$!

# --- the end ------------------------------------------------------------------------------------------------------------

wait "$job"
code=$?
while kill -0 "$job" 2>/dev/null; do # the signal interrupts `wait`
    wait "$job"
    code=$?
done
[ -s "$RAY_TMPDIR/driver.code" ] && code=$(cat "$RAY_TMPDIR/driver.code")
[ "$code" -eq 140 ] && code=75 # told before it could listen: the signal itself ended it
finish "$code"
