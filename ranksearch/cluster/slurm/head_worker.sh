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
