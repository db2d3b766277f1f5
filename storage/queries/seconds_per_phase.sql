-- Where the time of the finished trials went.
SELECT s.name AS study, x.phase, COUNT(*) AS num_trials, SUM(x.seconds) AS seconds, AVG(x.seconds) AS seconds_per_trial
FROM rs_timing x
JOIN rs_trial t ON t.id = x.trial_id
JOIN rs_study s ON s.id = t.study_id
GROUP BY s.name, x.phase
ORDER BY study, seconds DESC;
