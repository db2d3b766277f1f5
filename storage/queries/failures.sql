-- Why trials failed, and how many failures a retry made good.
SELECT study, reason, COUNT(*) AS num_failures, SUM(superseded) AS num_retried, MIN(trial) AS first_trial
FROM rs_attempts
WHERE state = 'failed'
GROUP BY study, reason
ORDER BY study, num_failures DESC, first_trial;
