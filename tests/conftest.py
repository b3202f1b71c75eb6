import pytest

# These start servers and time clients on a machine that may be busy: each has one more try, and
# pytest counts it as a rerun.
OVER_SOCKETS = ("sockets/", "faults/", "tests/server/", "test_cli", "test_examples", "test_kserve")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(part in item.nodeid for part in OVER_SOCKETS):
            item.add_marker(pytest.mark.flaky(reruns=1))
