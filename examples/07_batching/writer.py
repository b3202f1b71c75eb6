"""Write text letter by letter for many clients at once, by a small recurrent network in numpy.

Shows: `step(active)`, which makes the next letter of every stream in one matrix product; `join`,
which reads the prompt; streams that come and go between two steps, so that a short one does not
wait for a long one. Leaves out: a good model. The network is an echo state network: its recurrent
weights are random, and only what reads its state is fitted, to the documentation of some modules,
which takes about a second.

    pip install 'modelserve[tensors]'
    modelserve examples/07_batching/writer.py

    curl -N localhost:8080/v1/models/writer:predict -d '{"instances": [{"prompt": "This ", "letters": 200}]}'
    python examples/07_batching/measure.py writer
"""

import argparse
import collections
import difflib
import logging
import os
import re
import statistics
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a step is too small to be divided

import numpy as np

from modelserve import InvalidInput, Model, ModelServer, Slot, Stepping

UNITS = 600
MOST_LETTERS = 2000
MODULES = (argparse, collections, difflib, logging, statistics)


class Network:
    """An echo state network that guesses the next letter."""

    def __init__(self, text: str) -> None:
        self.letters = sorted(set(text))
        self._number = {letter: number for number, letter in enumerate(self.letters)}
        random = np.random.default_rng(0)
        recurrent = random.normal(size=(UNITS, UNITS)).astype(np.float32)
        self._recurrent = recurrent * np.float32(0.9 / np.sqrt(UNITS))
        self._inputs = random.normal(size=(len(self.letters), UNITS)).astype(np.float32)
        self._fit(self.numbers(text))

    def _fit(self, numbers: list[int]) -> None:
        """Fit what reads the state to the letter that comes next, by ridge regression."""
        states = np.empty((len(numbers) - 1, UNITS), np.float32)
        state = np.zeros((1, UNITS), np.float32)
        for at, number in enumerate(numbers[:-1]):
            states[at] = state = self.advance(state, [number])
        nexts = np.eye(len(self.letters), dtype=np.float32)[numbers[1:]]
        squares = states.T @ states + np.eye(UNITS, dtype=np.float32)
        self._output = np.linalg.solve(squares, states.T @ nexts)

    def numbers(self, text: str) -> list[int]:
        """Return the numbers of the letters that it knows."""
        return [self._number[letter] for letter in text if letter in self._number]

    def advance(self, states: Any, numbers: list[int]) -> Any:
        """Return the states after one more letter each, in one matrix product for all."""
        return np.tanh(states @ self._recurrent + self._inputs[numbers])

    def guess(self, states: Any, random: Any) -> list[int]:
        """Return a likely next letter for each state."""
        chances = np.log(np.maximum(states @ self._output, 0.01))
        drawn = 2 * chances + random.gumbel(size=chances.shape)
        return [int(number) for number in drawn.argmax(axis=1)]


class Stream:
    """Where one client's text has come to."""

    def __init__(self, state: Any, letters_left: int) -> None:
        self.state = state
        self.letters_left = letters_left


class Writer(Model):
    stepping = Stepping(max_active=8, room=64)

    def load(self) -> None:
        parts = [part.__doc__ for module in MODULES for part in vars(module).values()]
        text = " ".join(" ".join(part for part in parts if isinstance(part, str)).split())
        plain = re.sub(r"[^a-zA-Z ,.]", "", text)
        self.network = Network(plain[:20_000])
        self.random = np.random.default_rng()
        self.ready = True

    def join(self, slot: Slot) -> None:
        """Read the prompt."""
        asked = slot.payload["instances"][0]
        prompt, letters = asked.get("prompt", ""), asked.get("letters", 100)
        if not isinstance(prompt, str) or not isinstance(letters, int):
            raise InvalidInput("The prompt is text, and letters are a number.")
        state = np.zeros((1, UNITS), np.float32)
        for number in self.network.numbers(prompt[-200:] or "\n"):
            state = self.network.advance(state, [number])
        slot.state = Stream(state, min(max(letters, 1), MOST_LETTERS))

    def step(self, active: list[Slot]) -> None:
        """Write one letter for each client."""
        network = self.network
        states = np.concatenate([slot.state.state for slot in active])
        numbers = network.guess(states, self.random)
        states = network.advance(states, numbers)
        for at, (slot, number) in enumerate(zip(active, numbers, strict=True)):
            slot.put(network.letters[number])
            slot.state.state = states[at : at + 1]
            slot.state.letters_left -= 1
            if not slot.state.letters_left:
                slot.end()


app = ModelServer([Writer("writer")])
