"""A hundred workstations behind one rate limit: each waits for as long as it was asked to."""

import httpx
import trio
from trio.testing import MockClock

from tests.services.http_in_process import Service, client_of, file_ref

WORKSTATIONS = 100
FILES = 5
RATE = 20  # requests a second
INFO = {"hash": {"alg": "SHA256", "value": "0" * 64}, "size": 1}


class Limited:
    """A service that answers so many requests in each second, and 429 beyond, with the seconds to wait."""

    def __init__(self) -> None:
        self.second = -1
        self.answered = self.refused = 0
        self.may_ask = [0.0] * WORKSTATIONS  # from when on each may ask again
        self.too_soon = 0

    def answer(self, workstation: int) -> httpx.Response:
        now = trio.current_time()
        self.too_soon += now < self.may_ask[workstation]
        if int(now) > self.second:
            self.second, self.answered = int(now), 0
        if self.answered < RATE:
            self.answered += 1
            return httpx.Response(200, json=INFO)
        self.refused += 1
        wait = self.second + 1 - now
        self.may_ask[workstation] = now + wait
        return httpx.Response(429, json={"code": 8}, headers={"Archivist-Rate-Limit-Reset": f"{wait:.3f}"})


async def test_no_workstation_of_a_limited_fleet_asks_before_it_may_and_all_are_answered(
    autojump_clock: MockClock,
) -> None:
    del autojump_clock
    service = Limited()
    read = 0

    async def workstation(number: int) -> None:
        nonlocal read

        async with client_of(Service(lambda _: service.answer(number)), timeout=300) as client:
            for file in range(FILES):
                await client.info(file_ref(file))
                read += 1

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(WORKSTATIONS):
            nursery.start_soon(workstation, number)
    took = trio.current_time() - began
    assert read == WORKSTATIONS * FILES
    assert service.too_soon == 0
    # The limit itself takes 25 seconds; who waits does not lose all of them to it, nor storms.
    assert took < 10 * WORKSTATIONS * FILES / RATE, took
    assert service.refused < 3 * WORKSTATIONS * FILES
