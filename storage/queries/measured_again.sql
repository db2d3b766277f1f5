-- Trials that were measured again later: is the fresh ratio inside the interval of the one that the search saw?
SELECT
    s.name AS study,
    t.number AS trial,
    a.ratio AS search_ratio,
    b.ratio AS fresh_ratio,
    CASE WHEN b.ratio BETWEEN a.ratio_low AND a.ratio_high THEN 1 ELSE 0 END AS inside,
    b.created AS fresh_created
FROM rs_measurement a
JOIN rs_measurement b ON b.trial_id = a.trial_id AND b.kind = 'fresh' AND b.identity_key = a.identity_key
JOIN rs_trial t ON t.id = a.trial_id
JOIN rs_study s ON s.id = t.study_id
WHERE a.kind = 'search'
ORDER BY study, trial, fresh_created;
