"""Fixes of uvicorn's connections; the only package that uses uvicorn's internals.

Its httptools protocol (`httptools`) has these faults, each fixed by the method that is named:

- All requests of a read are parsed at once, and each answer allows another read, so that any number
  of requests may wait (`_receive`); while any wait, nothing is read, and the client's leaving is
  not noticed (`_settle`).
- Heads, trailers and the extensions of chunks have no bound (`_settle`).
- The fields of a trailer become headers of the request (`on_headers_complete`; RFC 9110, 6.5.1).
- A stream for an HTTP/1.0 client is sent in chunks, which HTTP/1.0 does not have
  (`on_headers_complete`; RFC 9112, 6.1).
- If a request asks for an upgrade to an unknown protocol, as those of Java's client and `curl
  --http2` do, its body is lost if it comes in the same read, and else parsed as requests
  (`_ignore_upgrade`; RFC 9110, 7.8).
- The error for malformed data is sent at once, before or inside of the responses to earlier
  requests (`send_400_response`).
- Only the last of pipelined requests learns that the client has left, and a connection that was
  reset stays in memory for the rest of its keep-alive time (`connection_lost`).

Its h11 protocol (`h11`): a head that is too long is a 400, or accepted if it comes in one read;
malformed data after the start of a response raises an exception; while requests wait, nothing is
read.

Both: a client that never ends its head, or stops inside of a body, keeps its connection for ever
(`SilentConnections`); so does one that reads nothing of a response that the application has
finished (`StalledConnections`).

A release of uvicorn with other attributes than the known ones is not changed.
"""
