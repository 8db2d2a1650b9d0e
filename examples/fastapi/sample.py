"""A small DTESN server: an echo state network that continues a series, with live parameters.

    python3 -m uvicorn --app-dir examples/fastapi sample:config --port 8000

Users POST {"series": [1, 2, 3], "steps": 2} to /predict. The agent comes over the Unix socket that SAMPLE_SOCKET names
(sample.sock); what was applied is remembered in SAMPLE_REMEMBER (not at all without it). Needs FastAPI and uvicorn.
"""

import math
import os
import random
import time
from typing import List

from dtesn_config import Config
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

LINKS = 4  # of each unit, so that a step costs units x LINKS


class Processor:
    """Reservoirs of sparsely linked units, each driven by the one outside of it, and a readout that learns as it reads."""

    def __init__(self, values):
        self.size, self.depth, self.order = values["esn_reservoir_size"], values["max_membrane_depth"], values["bseries_max_order"]
        chance = random.Random(self.size * 64 + self.depth)  # the same network after a restart
        self.layer = self.size // self.depth
        self.links = [[(chance.randrange(self.layer), chance.uniform(-0.4, 0.4)) for _ in range(LINKS)] for _ in range(self.size)]
        self.weights = [chance.uniform(-0.5, 0.5) for _ in range(self.size)]
        # a leak of 1/2 over one step, exp(-1/2), as a series of so many terms
        self.leak = sum((-0.5) ** n / math.factorial(n) for n in range(self.order + 1))
        self.cache = {}
        self.set(values)

    def set(self, values):
        """Takes what can change while it runs."""
        self.caching, self.ttl, self.monitoring = (
            values["enable_caching"], values["cache_ttl_seconds"], values["enable_performance_monitoring"])
        if not self.caching:
            self.cache.clear()

    def step(self, state, value):
        new, drive = [], value
        for first in range(0, self.layer * self.depth, self.layer):
            for unit in range(first, first + self.layer):
                pull = self.weights[unit] * drive + sum(w * state[first + link] for link, w in self.links[unit])
                new.append(self.leak * state[unit] + (1 - self.leak) * math.tanh(pull))
            drive = sum(new[first:]) / self.layer
        return new

    def predict(self, series, steps):
        key = (tuple(series), steps)
        known = self.cache.get(key)
        if known and known[0] > time.monotonic():
            return known[1]
        scale = max(map(abs, series)) or 1.0
        state, readout, answer = [0.0] * (self.layer * self.depth), [0.0] * (self.layer * self.depth), []
        value = series[0] / scale
        for following in [s / scale for s in series[1:]] + [None] * steps:
            state = self.step(state, value)
            guess = sum(w * s for w, s in zip(readout, state))
            if following is None:
                value = guess
                answer.append(guess * scale)
                continue
            value, rate = following, 0.5 * (following - guess) / (1e-6 + sum(s * s for s in state))
            readout = [w + rate * s for w, s in zip(readout, state)]
        if self.caching:
            self.cache[key] = (time.monotonic() + self.ttl, answer)
            if len(self.cache) > 1000:
                self.cache.pop(next(iter(self.cache)))
        return answer


class Request(BaseModel):
    series: List[float]
    steps: int = 1


app = FastAPI(title="DTESN sample")


@app.post("/predict")
def predict(request: Request):
    processor = config.processor
    if not 1 <= len(request.series) <= 1000 or not 1 <= request.steps <= 100:
        raise HTTPException(422, "a series has 1 to 1000 values, and is continued by 1 to 100")
    return {"predictions": processor.predict(request.series, request.steps), "reservoir_size": processor.size}


def admit(values):
    needed = 32 * values["max_membrane_depth"]
    if values["esn_reservoir_size"] < needed:
        return f"esn_reservoir_size: {values['esn_reservoir_size']} is less than 32 times max_membrane_depth ({needed})"
    return None


config = Config(app, build=Processor, socket=os.environ.get("SAMPLE_SOCKET", "sample.sock"),
                remember=os.environ.get("SAMPLE_REMEMBER"), apply=Processor.set, admit=admit)
