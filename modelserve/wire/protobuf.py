"""Message classes made of a `.proto` file when they are first needed.

They are in a pool of their own. Generated code would register its messages in protobuf's global
pool, where KServe's and Triton's packages register others of the same names; and it works with some
versions of protobuf only. The parser reads the part of the language that our files use: proto3
without options and imports.
"""

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, Final

from modelserve.errors import ExtraMissing, InvalidInput

__all__ = ["load_messages", "parsed"]

_TOKEN: Final = re.compile(r'//[^\n]*|"[^"]*"|[\w.]+|[^\s\w]')
_SCALARS: Final = frozenset(
    ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
)


def load_messages(package: str, name: str) -> dict[str, type[Any]]:
    """Return the classes of the messages in a file of a package, by name.

    The file's services are in the `DESCRIPTOR.file` of each. Raises ExtraMissing without protobuf.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise ExtraMissing("gRPC", "protobuf", "grpc") from None
    file = descriptor_pb2.FileDescriptorProto(name=f"modelserve/{name}", syntax="proto3")
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    _Reader(file, text).read_file()
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name)
    make = message_factory.GetMessageClass
    return {
        message: _finished(make(descriptor), package, make)
        for message, descriptor in found.message_types_by_name.items()
    }


def _finished(kind: type[Any], module: str, make: Callable[[Any], type[Any]]) -> type[Any]:
    """Return a class as one of generated code is: in a module, with the messages in it.

    They are kept: protobuf would make those that nobody holds anew after each collection.
    """
    kind.__module__ = module
    for descriptor in kind.DESCRIPTOR.nested_types:
        setattr(kind, descriptor.name, _finished(make(descriptor), module, make))
    return kind


def parsed(kind: type[Any], data: bytes | bytearray) -> Any:
    """Parse bytes as a message of a class. Raises InvalidInput."""
    try:
        return kind.FromString(data)
    except Exception:  # DecodeError, or an implementation's own exception
        name = kind.DESCRIPTOR.name
        raise InvalidInput(f"The call's message is not a {name}.") from None


class _Reader:
    """Parses one file into protobuf's descriptor."""

    def __init__(self, file: Any, text: str) -> None:
        self._file = file
        found = (match[0] for match in _TOKEN.finditer(text))
        self._tokens: Iterator[str] = (token for token in found if not token.startswith("//"))

    def read_file(self) -> None:
        for token in self._tokens:
            if token == "package":
                self._file.package = next(self._tokens)
            elif token == "message":
                self._read_message(self._file.message_type.add(name=next(self._tokens)))
            elif token == "enum":
                self._read_enum(self._file.enum_type.add(name=next(self._tokens)))
            elif token == "service":
                self._read_service(self._file.service.add(name=next(self._tokens)))

    def _read_message(self, message: Any, oneof: int | None = None) -> None:
        """Read to the end of a message, or of a oneof in it."""
        if oneof is None:
            self._expect("{")
        while (token := next(self._tokens)) != "}":
            if token == "message":
                self._read_message(message.nested_type.add(name=next(self._tokens)))
            elif token == "enum":
                self._read_enum(message.enum_type.add(name=next(self._tokens)))
            elif token == "oneof":
                message.oneof_decl.add(name=next(self._tokens))
                self._expect("{")
                self._read_message(message, len(message.oneof_decl) - 1)
            elif token == "map":
                self._read_map(message)
            elif token == "repeated":
                field = self._read_field(message, next(self._tokens))
                field.label = field.LABEL_REPEATED
            else:
                field = self._read_field(message, token)
                if oneof is not None:
                    field.oneof_index = oneof

    def _read_field(self, message: Any, kind: str) -> Any:
        field = message.field.add(name=next(self._tokens))
        field.label = field.LABEL_OPTIONAL
        _set_type(field, kind)
        self._expect("=")
        field.number = int(next(self._tokens))
        self._expect(";")
        return field

    def _read_map(self, message: Any) -> None:
        """Read a map: a repeated message of its own, with a key and a value."""
        _, key, _, value, _ = (next(self._tokens) for _ in "<k,v>")
        field = self._read_field(message, "bytes")
        words = field.name.split("_")
        entry = message.nested_type.add(name=f"{''.join(map(str.capitalize, words))}Entry")
        entry.options.map_entry = True
        for number, (name, kind) in enumerate((("key", key), ("value", value)), 1):
            part = entry.field.add(name=name, number=number)
            part.label = part.LABEL_OPTIONAL
            _set_type(part, kind)
        field.label = field.LABEL_REPEATED
        _set_type(field, entry.name)

    def _read_enum(self, enum: Any) -> None:
        self._expect("{")
        while (name := next(self._tokens)) != "}":
            self._expect("=")
            enum.value.add(name=name, number=int(next(self._tokens)))
            self._expect(";")

    def _read_service(self, service: Any) -> None:
        self._expect("{")
        while next(self._tokens) != "}":  # else it is "rpc"
            method = service.method.add(name=next(self._tokens))
            method.client_streaming, method.input_type = self._read_message_type()
            self._expect("returns")
            method.server_streaming, method.output_type = self._read_message_type()
            self._expect(";")

    def _read_message_type(self) -> tuple[bool, str]:
        """Return whether a method has a stream of a message, and the message."""
        self._expect("(")
        kind = next(self._tokens)
        is_stream = kind == "stream"
        if is_stream:
            kind = next(self._tokens)
        self._expect(")")
        return is_stream, kind

    def _expect(self, wanted: str) -> None:
        token = next(self._tokens)
        if token != wanted:
            raise ValueError(f"{self._file.name}: {wanted!r} is expected, not {token!r}")


def _set_type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    else:
        field.ClearField("type")
        field.type_name = kind
