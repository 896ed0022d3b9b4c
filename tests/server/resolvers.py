"""Name servers as far as fetching media sees them."""

import socket

from aiohttp.abc import AbstractResolver


class Answering(AbstractResolver):
    """Each look-up has its own answer."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host, port=0, family=socket.AF_INET):
        found = self.answers.pop(0)
        return [
            {"hostname": host, "host": each, "port": port, "family": family, "proto": 0, "flags": 0}
            for each in found
        ]

    async def close(self) -> None:
        self.answers = []
