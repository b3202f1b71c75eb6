"""What processes use, as the operating system accounts for it in /proc.

CPU time is that of a process and of the children that it has waited for; memory is the
proportional set size, which shares out shared pages among those that share them.
"""

import os
import resource
import time
from pathlib import Path
from typing import Protocol

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

ProcessTable = dict[int, tuple[int, str]]
"""The parent and the start time of every process, by its id."""


class HasCpuTime(Protocol):
    """Something whose CPU time can be read."""

    def cpu_seconds(self) -> float: ...


class OtherProcesses:
    """How busy everything else on the machine is: neither the server nor this client."""

    def __init__(self, server: HasCpuTime) -> None:
        self._server = server
        self._began = time.monotonic()
        self._before = self._others()

    def cpus(self) -> float:
        """Return how many CPUs the others have used since this was made."""
        return max(0.0, self._others() - self._before) / (time.monotonic() - self._began)

    def _others(self) -> float:
        return _busy_seconds() - self._server.cpu_seconds() - _own_seconds()


def _busy_seconds() -> float:
    """Return the CPU seconds in which the machine was not idle, stolen time included."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def _own_seconds() -> float:
    """Return the CPU seconds of this process and of the load generators it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def process_table() -> ProcessTable:
    """Return the parent and the start time of every process."""
    table = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _stat_fields(int(folder.name))
            if fields and fields[0] != "Z":
                table[int(folder.name)] = (int(fields[1]), fields[19])
    return table


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state (the third) on; none if it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def descendants(root: int, table: ProcessTable) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left += children.get(pid, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Return user and system time, its own and that of the children it has waited for."""
    fields = _stat_fields(pid)
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_SECOND


def memory(pid: int) -> int:
    """Return the bytes of its proportional set size; nothing if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
