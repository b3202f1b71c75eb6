import os
import signal
from pathlib import Path

import pytest
from servercommand import INT, TERM, Serve, until


@pytest.mark.slow
@pytest.mark.parametrize(("sig", "workers"), [(TERM, "1"), (INT, "1"), (TERM, "2"), (INT, "2")])
def test_signal_during_the_import(
    start: Serve, tmp_path: Path, sig: signal.Signals, workers: str
) -> None:
    (tmp_path / "slow.py").write_text(
        "from pathlib import Path\nimport time\nPath('importing').touch()\ntime.sleep(60)\n"
    )
    running = start("slow.py", "--workers", workers)
    until(lambda: running.has("importing"))
    os.killpg(running.process.pid, sig)
    assert running.exit_code(within=2) == 0
    assert running.log == ""
