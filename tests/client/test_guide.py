"""The guide about calling a server runs as it is written."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import serving

GUIDE = Path(__file__).parents[2] / "examples" / "guides" / "client.md"
# Of the server; without it there is nothing that answers a pipe.
HAS_STREAMED_BODIES = find_spec("modelserve.exchange.intake") is not None


def test_the_guide_runs_as_it_is_written() -> None:
    served, *blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(served, GUIDE.name, "exec"), found)  # noqa: S102 - our own document
    assert len(blocks) == 4
    with serving(found["app"]) as url:
        for block in blocks:
            if ".pipe(" in block and not HAS_STREAMED_BODIES:
                continue
            calling = block.replace("http://localhost:8080", url)
            exec(compile(calling, GUIDE.name, "exec"), found)  # noqa: S102
        anyio.run(found["main"])


@pytest.mark.parametrize("code", ["0", "1", "2", "3", "4", "130"])
def test_the_guide_and_the_help_agree_on_exit_codes(code: str) -> None:
    from modelserve.client.command import _EPILOG

    assert f"| {code} |" in GUIDE.read_text()
    assert re.search(rf"\b{code} [A-Za-z]", _EPILOG)
