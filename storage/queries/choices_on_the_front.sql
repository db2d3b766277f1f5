-- What the front makes of each layer: how many of its trials use a method, and the share of parameters they keep.
SELECT
    l.study,
    l.layer,
    l.method,
    COUNT(*) AS num_trials,
    AVG(1.0 * l.parameters / d.parameters) AS kept_parameters
FROM rs_pareto p
JOIN rs_layers l ON l.study = p.study AND l.trial = p.trial
JOIN rs_study s ON s.name = l.study
JOIN rs_layer d ON d.study_id = s.id AND d.name = l.layer
GROUP BY l.study, l.position, l.layer, l.method
ORDER BY l.study, l.position, num_trials DESC, l.method;
