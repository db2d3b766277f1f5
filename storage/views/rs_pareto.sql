-- The front of every study under its own objectives: the complete trials that no other complete trial beats, that is
-- equals in every objective and betters in one. Equals of a trial on the front are on it as well.
CREATE VIEW rs_pareto AS
WITH
-- Smaller is better in every column of `scored`; an objective that the study does not have is 0 for all its trials.
scored AS (
    SELECT
        t.study,
        t.trial,
        CASE WHEN s.objectives IN ('latency,accuracy', 'accuracy,latency') THEN 1 ELSE 0 END AS is_pair,
        CASE WHEN s.objectives LIKE '%latency%' THEN t.latency_ratio ELSE 0 END AS latency,
        CASE WHEN s.objectives LIKE '%accuracy%' THEN -t.accuracy ELSE 0 END AS inaccuracy,
        CASE WHEN s.objectives LIKE '%parameters%' THEN t.parameters ELSE 0 END AS parameters,
        CASE WHEN s.objectives LIKE '%bytes%' THEN t.bytes ELSE 0 END AS bytes,
        CASE WHEN s.objectives LIKE '%macs%' THEN t.macs ELSE 0 END AS macs
    FROM rs_trials t
    JOIN rs_study s ON s.name = t.study
    WHERE t.state = 'complete'
),
measured AS (
    SELECT study, trial, is_pair, latency, inaccuracy, parameters, bytes, macs
    FROM scored
    WHERE latency IS NOT NULL AND inaccuracy IS NOT NULL
        AND parameters IS NOT NULL AND bytes IS NOT NULL AND macs IS NOT NULL
),
-- Latency and accuracy alone: one pass in the order of latency.
swept AS (
    SELECT
        study,
        trial,
        latency,
        inaccuracy,
        MIN(inaccuracy) OVER (PARTITION BY study ORDER BY latency) AS best_as_fast,
        MIN(latency) OVER (PARTITION BY study, inaccuracy) AS fastest_as_good
    FROM measured
    WHERE is_pair = 1
),
front AS (
    SELECT study, trial FROM swept WHERE inaccuracy = best_as_fast AND latency = fastest_as_good
    UNION ALL
    SELECT a.study, a.trial
    FROM measured a
    WHERE a.is_pair = 0
        AND NOT EXISTS (
            SELECT 1
            FROM measured b
            WHERE b.study = a.study
                AND b.latency <= a.latency
                AND b.inaccuracy <= a.inaccuracy
                AND b.parameters <= a.parameters
                AND b.bytes <= a.bytes
                AND b.macs <= a.macs
                AND (
                    b.latency < a.latency
                    OR b.inaccuracy < a.inaccuracy
                    OR b.parameters < a.parameters
                    OR b.bytes < a.bytes
                    OR b.macs < a.macs
                )
        )
)
SELECT
    t.study, t.trial, t.state, t.accuracy, t.accuracy_low, t.accuracy_high,
    t.latency_ms, t.latency_ratio, t.latency_ratio_low, t.latency_ratio_high, t.speedup,
    t.parameters, t.macs, t.bytes, t.test_accuracy, t.test_accuracy_low, t.test_accuracy_high,
    t.origin, t.recipe, t.parent, t.attempt, t.retry_of, t.reason, t.plan, t.seconds_total
FROM rs_trials t
JOIN front f ON f.study = t.study AND f.trial = t.trial
