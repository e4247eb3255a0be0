"""Nothing that a client sends makes the server fail, hang or grow; `python -m tests.serve.hostile 10000` sends more."""

from __future__ import annotations

import asyncio

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from tests.serve.conftest import Make, in_process
from tests.serve.hostile import attack

COUNT = 2000


def test_two_thousand_hostile_requests(served: Make) -> None:
    limits = Limits(max_tokens=64)
    app = create_app([served(limits=limits)], limits, page=())

    async def main() -> None:
        async with in_process(app) as client:
            found = await attack(client, COUNT, seed=0)
        assert sum(found.values()) == COUNT
        # An attack that is refused at the door tests nothing.
        assert found[200] > COUNT // 20
        assert found[400] > COUNT // 3
        service = app.state.service
        assert all(model.driver.open == 0 for model in service.models.values())

    asyncio.run(main())
