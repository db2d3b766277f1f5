
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
