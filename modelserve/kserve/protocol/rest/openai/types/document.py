"""JSON objects with members as attributes, in the place of pydantic's models."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

import orjson

from modelserve.wire.json import to_json

__all__ = ["Document"]


class Document(dict[str, Any]):
    """A JSON object whose members are attributes as well, those of objects inside included.

    Any member may be given; nothing is checked. One that was not given has its default, None for
    most. The methods are those of pydantic's models that programs call.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **members: Any) -> None:
        super().__init__({name: _with_attributes(value) for name, value in members.items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name] if name in self else self.defaults.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    @classmethod
    def model_validate(cls, document: Mapping[str, Any]) -> Self:
        """Return a document with these members."""
        return document if isinstance(document, cls) else cls(**document)

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        """Return a document with the members of this JSON. Raises ValueError."""
        return cls.model_validate(orjson.loads(text))

    @classmethod
    def model_construct(cls, **members: Any) -> Self:
        """Return a document with these members."""
        return cls(**members)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, always a deep one, with these members changed."""
        return type(self)(**{**self, **(update or {})})

    def model_dump(
        self,
        *,
        exclude_unset: bool = False,
        exclude_none: bool = False,
        exclude: Collection[str] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """Return the members as plain dicts and lists; other options of pydantic's are ignored."""
        members = dict(self) if exclude_unset else {**self.defaults, **self}
        return {
            name: _plain(value, exclude_none=exclude_none)
            for name, value in members.items()
            if name not in exclude and not (exclude_none and value is None)
        }

    def model_dump_json(self, **options: Any) -> str:
        """Return the members as JSON; the options are those of `model_dump`."""
        options.pop("indent", None)
        return to_json(self.model_dump(**options)).decode()


def _with_attributes(value: Any) -> Any:
    if type(value) is dict and all(isinstance(name, str) for name in value):
        return Document(**value)
    return [_with_attributes(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any, *, exclude_none: bool) -> Any:
    if isinstance(value, dict):
        return {
            name: _plain(item, exclude_none=exclude_none)
            for name, item in value.items()
            if not (exclude_none and item is None)
        }
    if isinstance(value, list):
        return [_plain(item, exclude_none=exclude_none) for item in value]
    return value
