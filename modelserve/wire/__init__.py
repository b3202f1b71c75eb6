"""The formats on the wire: their reading, writing and choice, without I/O."""
