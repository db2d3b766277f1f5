-- One row a trial and layer, layers that stay dense included: what became of the layer and what it costs then.
CREATE VIEW rs_layers AS
SELECT
    s.name AS study,
    t.number AS trial,
    l.position AS position,
    l.name AS layer,
    l.kind AS kind,
    l.shape AS shape,
    COALESCE(c.method, 'dense') AS method,
    COALESCE(c.ranks, '') AS ranks,
    CASE WHEN c.method IS NULL THEN l.parameters ELSE o.parameters END AS parameters,
    CASE WHEN c.method IS NULL THEN l.macs ELSE o.macs END AS macs
FROM rs_study s
JOIN rs_trial t ON t.study_id = s.id
JOIN rs_layer l ON l.study_id = s.id
LEFT JOIN rs_choice c ON c.trial_id = t.id AND c.layer_id = l.id
LEFT JOIN rs_option o ON o.layer_id = c.layer_id AND o.method = c.method AND o.ranks = c.ranks
