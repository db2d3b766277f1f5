
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

