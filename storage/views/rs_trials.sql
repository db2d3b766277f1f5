-- One row a logical trial: the attempts less the failures that a retry replaced.
CREATE VIEW rs_trials AS
SELECT
    study, trial, state, accuracy, accuracy_low, accuracy_high,
    latency_ms, latency_ratio, latency_ratio_low, latency_ratio_high, speedup,
    parameters, macs, bytes, test_accuracy, test_accuracy_low, test_accuracy_high,
    origin, recipe, parent, attempt, retry_of, reason, plan, seconds_total
FROM rs_attempts
WHERE superseded = 0
