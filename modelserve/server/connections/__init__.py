"""What uvicorn leaves undone about its connections; the one place that knows uvicorn's insides.

Its httptools protocol (`httptools`), each mended by the method that is named:

- All requests of a read are parsed at once, and each answer lets another read in, so that any
  number may wait (`_receive`); while any wait, nothing is read, not even that the client has left
  (`_settle`).
- Heads, trailers and the extensions of chunks have no bound (`_settle`).
- The fields of a trailer become headers of the request (`on_headers_complete`; RFC 9110, 6.5.1).
- A stream for an HTTP/1.0 client is sent in chunks, which that does not know
  (`on_headers_complete`; RFC 9112, 6.1).
- The body of a request that asks for a protocol which is not spoken, as Java's client and `curl
  --http2` do, is lost where it comes in the same read, and parsed as requests where it does not
  (`_ignore_upgrade`; RFC 9110, 7.8).
- What cannot be parsed is answered at once, before or inside of the responses to the requests in
  front of it (`send_400_response`).
- Only the last of pipelined requests learns that the client has left, and a connection that was
  reset stays in memory for the rest of its keep-alive time (`connection_lost`).

Its h11 protocol (`h11`): a head that is too long is a 400, or none if it comes in one read; what
cannot be parsed behind a response that has begun is an exception; while requests wait, nothing is
read.

Both: a client that never ends its head, or stops inside of a body, keeps its connection for ever
(`SilentConnections`); so does one that reads nothing of a response that the application is done
with (`StalledConnections`).

A release whose attributes are not the known ones is left as it is.
"""
