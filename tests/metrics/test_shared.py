from pathlib import Path

import pytest
from recording import record, shared
from scraping import requests, requests_by_model

from modelserve.metrics.cells import Cells
from modelserve.metrics.shared import WorkerFile, claim_file, read_file
from modelserve.metrics.shared_directory import shared_directory
from modelserve.metrics.telemetry import Telemetry


def claimed(directory: Path, **cells: list[float]) -> tuple[WorkerFile, list[Cells]]:
    """Claim a file and write records to it, each with one label, "x"."""
    file = claim_file(directory)
    appended = [file.append((name, "x"), len(values)) for name, values in cells.items()]
    for new, values in zip(appended, cells.values(), strict=True):
        for index, value in enumerate(values):
            new[index] = value
    return file, appended


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file, (one, _) = claimed(tmp_path, one=[1.5], two=[2.0, 3.0])
    assert read_file(file.path) == (True, [(("one", "x"), [1.5]), (("two", "x"), [2.0, 3.0])])
    one[0] += 1
    file.close()
    assert read_file(file.path) == (False, [(("one", "x"), [2.5]), (("two", "x"), [2.0, 3.0])])


def test_a_locked_file_is_not_claimed_again(tmp_path: Path) -> None:
    first, _ = claimed(tmp_path)
    second, _ = claimed(tmp_path)
    assert first.others() == [second.path]
    assert second.others() == [first.path]
    first.close()
    third, _ = claimed(tmp_path)
    assert third.path == first.path
    third.close()
    second.close()


def test_a_claimed_file_shows_what_the_last_worker_wrote(tmp_path: Path) -> None:
    file, _ = claimed(tmp_path, one=[1.5])
    file.close()
    heir, _ = claimed(tmp_path, two=[2.0])
    assert [(key, list(cells)) for key, cells in heir.records()] == [
        (("one", "x"), [1.5]),
        (("two", "x"), [2.0]),
    ]
    heir.close()


@pytest.mark.slow
def test_grows_while_it_is_in_use_and_being_read(tmp_path: Path) -> None:
    with shared(tmp_path) as writer, shared(tmp_path) as reader:
        reader.open()
        long_name = "x" * 100_000
        series = [writer.model(name) for name in (*map(str, range(2000)), long_name)]
        for one in series:
            record(one)
        for one in series:
            record(one)
        assert requests_by_model(reader) == {one.name: 2.0 for one in series}
    with shared(tmp_path) as heir:
        record(heir.model(long_name))
        assert requests_by_model(heir)[long_name] == 3.0


def test_a_record_that_was_never_finished_leaves_nothing(tmp_path: Path) -> None:
    with shared(tmp_path) as killed:
        record(killed.model("m"))
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    path.write_bytes(written.rstrip(b"\0").ljust(len(written), b"g"))
    with shared(tmp_path) as heir:
        record(heir.model("m"))
        record(heir.model("n"))
        assert (requests(heir), requests(heir, "n")) == (2, 1)


@pytest.mark.parametrize("garbage", [b"x", b"garbage!" * 3, b"\x00" * 5, bytes(1 << 16)])
def test_damaged_files_do_no_harm(garbage: bytes, tmp_path: Path) -> None:
    with shared(tmp_path) as reader:
        reader.open()
        (path,) = tmp_path.iterdir()
        (tmp_path / path.name.replace("0", "7")).write_bytes(garbage)
        record(reader.model("m"))
        assert requests(reader) == 1
    path.write_bytes(garbage)
    with shared(tmp_path) as heir:
        record(heir.model("m"))
        assert requests(heir) == 1


def test_a_worker_counts_on_when_the_directory_disappears(tmp_path: Path) -> None:
    with shared_directory() as directory:
        telemetry = Telemetry(directory)
        record(telemetry.model("m"))
    assert not Path(directory).exists()
    record(telemetry.model("m"))
    record(telemetry.model("n"))
    assert (requests(telemetry), requests(telemetry, "n")) == (2, 1)
    telemetry.close()
