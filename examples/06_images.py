"""Take an image that is uploaded, and answer with an image.

Shows: a form with a file and a field; a file that is handed to a library as it is; bytes with a
content type of their own as the answer; a 400 for what is no image. Leaves out: a model. The image
is turned grey and made smaller.

    pip install 'modelserve[forms]' pillow
    modelserve examples/06_images.py

    curl localhost:8080/v1/models/thumbnail:predict -F image=@photo.jpg -F width=64 > small.png
    curl localhost:8080/v1/models/thumbnail:predict -H 'Content-Type: image/jpeg' --data-binary @photo.jpg > small.png
"""

import io
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from modelserve import InvalidInput, Limits, Model, ModelServer

MOST_PIXELS = 50_000_000  # a small file may hold a huge image


class Thumbnail(Model):
    """Make a grey thumbnail; `def` hooks run in a thread, so that decoding holds up nobody."""

    limits = Limits(concurrency=4, max_body_bytes=32 << 20)

    def preprocess(self, payload: Any) -> tuple[Image.Image, int]:
        if isinstance(payload, bytes):  # the image is the body
            return opened(io.BytesIO(payload)), 128
        try:
            width, file = int(payload.get("width", "128")), payload["image"].file
        except (KeyError, AttributeError, ValueError):
            raise InvalidInput('Expected a file "image" and a number "width".') from None
        return opened(file), min(max(width, 1), 1024)

    def predict(self, given: tuple[Image.Image, int]) -> bytes:
        image, width = given
        small = image.convert("L")
        small.thumbnail((width, width))
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        return buffer.getvalue()

    def postprocess(self, result: bytes, headers: Any, response_headers: Any) -> bytes:
        response_headers["content-type"] = "image/png"
        return result


def opened(file: BinaryIO) -> Image.Image:
    """Open an image. Raises InvalidInput for what is none, or too large."""
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        raise InvalidInput("The file is no image that can be read.") from None
    if image.width * image.height > MOST_PIXELS:
        raise InvalidInput(f"The image has more than {MOST_PIXELS} pixels.")
    return image


app = ModelServer([Thumbnail("thumbnail")])
