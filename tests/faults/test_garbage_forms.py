"""Bodies of multipart/form-data that are nearly right, in any pieces: a form, or a 4xx."""

from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelserve import Limits, Model, ModelServer, Upload
from modelserve.testing import exchange

pytestmark = pytest.mark.slow

PIECES = st.sampled_from(
    [
        b"--b\r\n", b"--b", b"--b--\r\n", b"--b--", b"--", b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"b", b"",
        b'Content-Disposition: form-data; name="f"\r\n\r\n',
        b'Content-Disposition: form-data; name="f"; filename="a.txt"\r\n',
        b"Content-Disposition: form-data; filename*=utf-8''%C3%A9\r\n",
        b'content-disposition: attachment; name="f"\r\n\r\n', b"Content-Disposition: form-data\r\n\r\n",
        b"Content-Type: text/plain; charset=latin-1\r\n\r\n", b"Content-Transfer-Encoding: base64\r\n",
        b'Content-Disposition: form-data; name="_charset_"\r\n\r\nutf-16\r\n', b": x\r\n", b"x" * 2000,
    ]
) | st.binary(max_size=40)  # fmt: skip
TYPES = st.sampled_from(
    [
        "multipart/form-data; boundary=b", 'multipart/form-data; boundary="b"', "multipart/form-data",
        "multipart/form-data; boundary=", "multipart/form-data; boundary=b; charset=latin-1",
        f"multipart/form-data; boundary={'b' * 100}", "multipart/form-data; boundary=\xe9",
    ]
)  # fmt: skip
HEADS = st.sampled_from(
    [
        b'Content-Disposition: form-data; name="f"',
        b'Content-Disposition: form-data; name="f"; filename="a.txt"\r\nContent-Type: text/plain',
        b"Content-Disposition: form-data; name=f; filename*=utf-8''%C3%A9",
        b'content-disposition: form-data; name="_charset_"',
    ]
)
PARTS = st.tuples(HEADS, st.binary(max_size=60)).map(lambda part: b"--b\r\n%b\r\n\r\n%b\r\n" % part)


@st.composite
def nearly_right(draw: st.DrawFn) -> list[bytes]:
    """A form that is right, or lacks a few bytes somewhere, in pieces."""
    body = b"".join(draw(st.lists(PARTS, max_size=4))) + b"--b--\r\n"
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + body[at + draw(st.integers(0, 4)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return [body[start:stop] for start, stop in pairwise([0, *cuts, len(body)])]


opened: list[Upload] = []


class Reads(Model):
    async def predict(self, form: Any) -> Any:
        sizes = []
        for _, value in form.multi_items():
            if isinstance(value, Upload):
                opened.append(value)
            sizes.append(len(value) if isinstance(value, str) else len(await value.aread()))
        return sizes


APP = ModelServer([Reads("m")], limits=Limits(max_body_bytes=20_000))


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=nearly_right() | st.lists(PIECES, max_size=14),
    content_type=st.just("multipart/form-data; boundary=b") | TYPES,
    ends=st.sampled_from([True, True, True, False]),
)
def test_any_form_is_read_or_refused(pieces: list[bytes], content_type: str, ends: bool) -> None:
    async def send() -> int:
        headers = {"content-type": content_type}
        async with exchange(
            APP, "POST", "/v1/models/m:predict", body=None, headers=headers
        ) as client:
            for piece in pieces:
                client.send_body(piece, more=True)
            if not ends:
                client.hang_up()
                return 400
            client.send_body(b"", more=False)
            return (await client.response()).status

    opened.clear()
    assert anyio.run(send) in (200, 400, 413)
    assert all(upload.file.closed for upload in opened)
    assert APP.serving.admission.budget.held == 0
    assert APP.serving.registry.get("m").gate.running == 0
