"""Models for the chaos run: they load, or fail, or fail badly; each keeps the account of faultapp.

Written into a repository by `test_chaos`; served with `--model-dir`, where `load` and `unload` are
allowed. The model `account` returns the sums of its process.
"""

from pathlib import Path

__all__ = ["KINDS", "write"]

GOOD = """
import anyio
from faultapp import {base}

class Chaos({base}):
    def start(self):
        pass

    async def load(self):
        await anyio.sleep({seconds})
        return True

model = Chaos({name!r})
"""

BROKEN = """
import asyncio
from faultapp import ERRORS, Value

class Broken(Value):
    {how} load(self):
        raise ERRORS[{error!r}]()

model = Broken({name!r})
"""
