"""Hypothesis profiles. `XLN_HYPOTHESIS_PROFILE=long` is what `make sim` runs; the default keeps `make test` short."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from node import logs

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


@pytest.fixture(autouse=True)
def _log_handlers_end_with_their_test() -> Iterator[None]:
    """A command that ran inside a test has set up logging to that test's own stderr; nobody writes there afterwards."""
    yield
    if logs._handler is not None:
        logging.getLogger().removeHandler(logs._handler)
        logs._handler.close()
        logs._handler = None
    ours = logging.getLogger(logs.ROOT)
    ours.setLevel(logging.NOTSET)
    for handler in list(ours.handlers):
        ours.removeHandler(handler)
