"""What is counted is what happened, in the text that Prometheus reads."""

from __future__ import annotations

import asyncio
import re

from moonlet.serve.app import create_app
from moonlet.serve.metrics import Histogram
from tests.serve.conftest import Make, in_process

SAMPLE = re.compile(r'[a-z_]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? (-?[0-9.e+]+)')


def test_metrics_count_requests_tokens_and_slots(served: Make) -> None:
    async def main() -> str:
        async with in_process(create_app([served()], page=())) as http:
            for _ in range(2):
                await http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 6, "seed": 1})
            await http.post("/v1/completions", json={"prompt": 5})
            for path in ("/nothing", "/v1/models/a", "/v1/models/b"):
                await http.get(path)
            return (await http.get("/metrics")).text

    text = asyncio.run(main())
    lines = text.splitlines()
    assert all(line.startswith(("# HELP ", "# TYPE ")) or SAMPLE.fullmatch(line) for line in lines)
    for line in (
        'moonlet_requests_total{route="/v1/completions",status="200"} 2',
        'moonlet_requests_total{route="/v1/completions",status="400"} 1',
        'moonlet_requests_total{route="other",status="404"} 3',
        "moonlet_prompt_tokens_total 8",
        "moonlet_generated_tokens_total 12",
        "moonlet_first_token_seconds_count 2",
        'moonlet_request_seconds_bucket{le="+Inf"} 2',
        'moonlet_up{model="tiny"} 1',
        'moonlet_open_answers{model="tiny"} 0',
        'moonlet_engine_free_slots{model="tiny"} 4',
    ):
        assert line in lines, line
    named = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(named) == len(set(named))


def test_a_histogram_counts_up_to_each_bound_and_with_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert list(histogram.lines("x")) == [
        'x_bucket{le="1.0"} 2',
        'x_bucket{le="2.0"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 12.000000",
        "x_count 4",
    ]
