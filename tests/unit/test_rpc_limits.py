"""The token bucket."""

from rpc.limits import TokenBucket


def test_a_bucket_gives_the_burst_then_the_rate() -> None:
    bucket = TokenBucket(10, 5, now=100.0)
    assert bucket.take(5, 100.0)
    assert not bucket.take(1, 100.0)
    assert not bucket.take(1, 100.05)
    assert bucket.take(1, 100.125)
    assert not bucket.take(6, 1000.0)  # never more than the burst
    assert bucket.take(5, 1000.0)
    assert not bucket.take(1, 1000.0)
