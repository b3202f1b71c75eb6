"""Bodies of forms, written byte by byte."""

from typing import Any

BOUNDARY = "x"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}

Part = tuple[str | bytes, bytes]  # the parameters of content-disposition, or all headers; the data


def form_of(*parts: Part, end: bytes = b"--x--\r\n") -> bytes:
    return (
        b"".join(b"--x\r\n" + head_of(head) + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
        + end
    )


def head_of(head: str | bytes) -> bytes:
    return head if isinstance(head, bytes) else f"Content-Disposition: form-data; {head}".encode()


def file_of(data: bytes, name: str = "f") -> Part:
    return f'name="{name}"; filename="{name}.bin"', data


def seen(form: Any) -> list[Any]:
    """Return what is in a form, files as their name, type, size and bytes."""
    return [
        (
            name,
            value
            if isinstance(value, str)
            else (value.filename, value.content_type, value.size, value.read()),
        )
        for name, value in form.multi_items()
    ]
