"""The messages, stubs and the servicer of gRPC at KServe's path, for programs that use them."""
