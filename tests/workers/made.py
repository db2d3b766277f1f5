"""A latency that is known before its trial runs."""

from dataclasses import replace

from tests.study.conftest import measurement

KNOWN = replace(measurement(0.5), conditions={"reused from": "another/7"}, batch_size=2)
