# On every node `ray symmetric-run` starts Ray; on the head it then waits for the others, runs the search and stops Ray.
"${step[@]}" --nodes="$SLURM_JOB_NUM_NODES" --wait=30 bash -c "$node" node \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$num_cpus" --num-gpus="$num_gpus" -- \
    bash -c "$driver" driver "${run[@]}" --address "$address" &
job=$!
