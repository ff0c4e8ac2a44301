"""Hypothesis profiles. `XLN_HYPOTHESIS_PROFILE=long` is what `make sim` runs; the default keeps `make test` short."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", max_examples=60, deadline=None)
settings.register_profile(
    "long",
    max_examples=2_000,
    stateful_step_count=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("XLN_HYPOTHESIS_PROFILE", "default"))
