"""Media types (RFC 9110, 8.3.1). Pure."""

__all__ = ["is_json", "media_type"]


def media_type(content_type: str) -> str:
    """Return the type and the subtype in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json(name: str) -> bool:
    """Return whether what has this media type is JSON (RFC 6839, 3.1)."""
    return name == "application/json" or name.endswith("+json")
