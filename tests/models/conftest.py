"""What the tests of predictors have in common."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate of 127.0.0.1 that nobody has signed, and its key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = (
        "req -x509 -newkey rsa:2048 -nodes -subj /CN=predictor -addext subjectAltName=IP:127.0.0.1"
        " -keyout key.pem -out cert.pem"
    )
    subprocess.run(["openssl", *made.split()], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"
