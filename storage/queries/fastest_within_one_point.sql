-- Of every study the fastest trial that loses at most one point (0.01) of accuracy to the dense model.
SELECT study, trial, speedup, accuracy, dense_accuracy, plan
FROM (
    SELECT
        t.study, t.trial, t.speedup, t.accuracy, d.accuracy AS dense_accuracy, t.plan,
        ROW_NUMBER() OVER (PARTITION BY t.study ORDER BY t.latency_ratio, t.trial) AS place
    FROM rs_trials t
    JOIN rs_trials d ON d.study = t.study AND d.origin = 'dense' AND d.state = 'complete'
    WHERE t.state = 'complete' AND t.accuracy >= d.accuracy - 0.01
) ranked
WHERE place = 1
ORDER BY study;
