"""What goes over the wire, written, read and chosen: bytes alone, without I/O."""
