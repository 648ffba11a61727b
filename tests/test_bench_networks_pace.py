import pytest

from adapt.errors import AdaptError
from bench.networks.pace import call_interval_ms


@pytest.mark.parametrize(
    ("text", "batch", "every_ms"),
    [("100ms", 1, 100.0), ("0.1s", 8, 100.0), ("10/s", 1, 100.0), ("30/s", 6, 200.0)],
)
def test_a_rate_is_a_time_between_calls_or_images_per_second(text, batch, every_ms):
    assert call_interval_ms(text, batch) == pytest.approx(every_ms)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "must be like 100ms, or 10/s") for text in ("100", "0ms", "ms", "10fps", "-1s")),
        ("0.01/s", "a call every 100 s; at most 60 s"),
    ],
)
def test_no_rate_is_refused_with_its_text(text, said):
    with pytest.raises(AdaptError, match=said):
        call_interval_ms(text, 1)
