-- One row a trial as it was run, failures that a retry replaced included (superseded = 1).
-- Latency is that of the newest fresh measurement made under the study's own identity (that of the search's measurement
-- of the dense model: o), else of the search; milliseconds are ratio x the dense model's median.
CREATE VIEW rs_attempts AS
SELECT
    s.name AS study,
    t.number AS trial,
    t.state AS state,
    t.accuracy AS accuracy,
    t.accuracy_low AS accuracy_low,
    t.accuracy_high AS accuracy_high,
    m.ratio * d.dense_p50_ms AS latency_ms,
    m.ratio AS latency_ratio,
    m.ratio_low AS latency_ratio_low,
    m.ratio_high AS latency_ratio_high,
    1.0 / m.ratio AS speedup,
    t.parameters AS parameters,
    t.macs AS macs,
    t.bytes AS bytes,
    c.value AS test_accuracy,
    c.low AS test_accuracy_low,
    c.high AS test_accuracy_high,
    t.origin AS origin,
    t.recipe AS recipe,
    (
        SELECT MAX(p.number) FROM rs_trial p
        WHERE p.study_id = t.study_id AND p.spec_key = t.parent_key AND p.state = 'complete'
    ) AS parent,
    t.attempt AS attempt,
    t.retry_of AS retry_of,
    t.reason AS reason,
    t.plan AS plan,
    (SELECT SUM(x.seconds) FROM rs_timing x WHERE x.trial_id = t.id) AS seconds_total,
    CASE
        WHEN t.state = 'failed'
            AND EXISTS (SELECT 1 FROM rs_trial r WHERE r.study_id = t.study_id AND r.retry_of = t.number) THEN 1
        ELSE 0
    END AS superseded
FROM rs_study s
LEFT JOIN rs_measurement o ON o.id = (
    SELECT MAX(x.id)
    FROM rs_measurement x
    WHERE x.kind = 'search' AND x.trial_id = (
        SELECT MIN(y.id) FROM rs_trial y WHERE y.study_id = s.id AND y.origin = 'dense' AND y.state = 'complete'
    )
)
LEFT JOIN rs_measurement d ON d.id = (
    SELECT COALESCE(MAX(CASE WHEN x.kind = 'fresh' THEN x.id END), MAX(x.id))
    FROM rs_measurement x
    WHERE x.trial_id = o.trial_id AND (x.kind = 'search' OR x.identity_key = o.identity_key)
)
JOIN rs_trial t ON t.study_id = s.id
LEFT JOIN rs_measurement m ON m.id = (
    SELECT COALESCE(MAX(CASE WHEN x.kind = 'fresh' THEN x.id END), MAX(x.id))
    FROM rs_measurement x
    WHERE x.trial_id = t.id AND (x.kind = 'search' OR x.identity_key = o.identity_key)
)
LEFT JOIN rs_score c ON c.trial_id = t.id AND c.split = 'test'
