"""Serve a language model of Hugging Face's: see README.md beside this file."""

import argparse

from language import name_of
from onebyone import OneByOne
from together import Together

from modelserve import ModelServer, Stepping


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a causal language model.")
    parser.add_argument("checkpoint", help="a folder, or a name on Hugging Face's hub")
    parser.add_argument(
        "--name", help="what clients call it; the checkpoint's own name unless given"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default cpu)")
    parser.add_argument(
        "--together", type=int, metavar="N", help="write up to N texts in one forward pass per step"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="default 8080")
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    kind = OneByOne if options.together is None else Together
    model = kind(options.name or name_of(options.checkpoint), options.checkpoint, options.device)
    if options.together is not None:
        model.stepping = Stepping(max_active=options.together)
    ModelServer([model]).run(host=options.host, port=options.port)
