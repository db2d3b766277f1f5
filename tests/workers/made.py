"""A latency that is known before its trial runs."""

from ranksearch.records import Measurement

KNOWN = Measurement(
    protocol=1,
    identity={"device": "test"},
    conditions={"reused from": "another/7"},
    batch_size=2,
    ratio=0.5,
    ratio_low=0.49,
    ratio_high=0.51,
    dense_p50_ms=2.0,
    p50_ms=1.0,
    p90_ms=None,
    p95_ms=None,
    p99_ms=None,
    num_blocks=2,
    num_samples=4,
    num_dropped_blocks=0,
    warmup_seconds=0.1,
    seconds=0.2,
)
