-- The front of every study, the fastest first, beside the accuracy that the dense model has.
SELECT p.study, p.trial, p.latency_ms, p.speedup, p.accuracy, p.accuracy - d.accuracy AS accuracy_change, p.parameters, p.plan
FROM rs_pareto p
LEFT JOIN rs_trials d ON d.study = p.study AND d.origin = 'dense' AND d.state = 'complete'
ORDER BY p.study, p.latency_ratio;
