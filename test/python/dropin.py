"""A FastAPI server with examples/fastapi/dtesn_config.py mounted, and the faults that a test asks for.

    PYTHONPATH=../examples/fastapi python3 -m uvicorn --app-dir python dropin:config --port PORT

It serves the socket DROPIN_SOCKET and remembers in DROPIN_REMEMBER. What it does wrong stands in MISBEHAVE: at start
from the variable DTESN_MISBEHAVE, then by POST /test/misbehave over TCP. GET /test/seen shows what happened so far.
"""

import asyncio
import json
import os
import time

import module
from dtesn_config import Config
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

MISBEHAVE = {
    "slow": 0.0,  # seconds that a build takes
    "over": 2000,  # from which reservoir size on it does the following
    "admit": "",  # the reason why admit refuses
    "build": False,  # build raises; a name of RAISES: that
    "apply": False,  # apply raises after it set half of the values, once
    "on_change": "",  # "raise" or "async": on_change raises, two lines
    "close": False,  # close never ends
    "fail": False,  # requests are answered with 500
    "guarded": False,  # the application has all the middleware that module.py has
}
MISBEHAVE.update(json.loads(os.environ.get("DTESN_MISBEHAVE", "{}")))
SEEN = {"pid": os.getpid(), "builds": [], "applies": [], "closes": [], "told": []}


class Mute(Exception):
    def __str__(self):
        raise ValueError("no text")


RAISES = {kind.__name__: kind for kind in (SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, asyncio.CancelledError, Mute)}


def large(values):
    return values["esn_reservoir_size"] > MISBEHAVE["over"]


class Processor:
    def __init__(self, values):
        self.values, self.open = values, True
        SEEN["builds"].append(values["esn_reservoir_size"])
        time.sleep(MISBEHAVE["slow"])
        if MISBEHAVE["build"] in RAISES and large(values):
            raise RAISES[MISBEHAVE["build"]]("the driver is lost")
        if MISBEHAVE["build"] and large(values):
            raise MemoryError(f"no memory for {values['esn_reservoir_size']} units")

    def set(self, values):
        SEEN["applies"].append(values["cache_ttl_seconds"])
        self.values = {**self.values, "cache_ttl_seconds": values["cache_ttl_seconds"]}
        if MISBEHAVE["apply"]:
            MISBEHAVE["apply"] = False
            raise RuntimeError("the cache does not answer")
        self.values = values

    def close(self):
        self.open = False
        time.sleep(3600 if MISBEHAVE["close"] else 0)
        SEEN["closes"].append(self.values["esn_reservoir_size"])


async def objects(values):
    await asyncio.sleep(0.01)
    raise ValueError("the dashboard\nis asynchronously down")


def on_change(values):
    SEEN["told"].append(values["esn_reservoir_size"])
    if MISBEHAVE["on_change"] == "async" and large(values):
        return objects(values)
    if MISBEHAVE["on_change"] and large(values):
        raise ValueError("the dashboard\nis down")


app = FastAPI(title="drop-in")


for guard in (module.validation, module.Security(), module.Limit()) if MISBEHAVE["guarded"] else ():
    app.middleware("http")(guard)


@app.middleware("http")
async def passing(request: Request, call_next):
    """A middleware runs routes in a task of their own, where they must have the same processor."""
    return await call_next(request)


@app.get("/v1/config/current")
async def shadowed():
    """A route that the application has already."""
    return {"success": True, "configuration": {}}


@app.get("/work")
async def work(seconds: float = 0.0):
    first = config.processor
    await asyncio.sleep(seconds)
    if MISBEHAVE["fail"] and large(first.values):
        raise HTTPException(500, "no answer")
    if config.processor is not first or not first.open:
        raise HTTPException(500, "the processor changed, or was closed, within a request")
    return first.values


@app.get("/work-in-a-thread")
def work_in_a_thread():
    if MISBEHAVE["fail"] and large(config.processor.values):
        raise HTTPException(500, "no answer")
    return config.processor.values


@app.get("/broken")
async def broken():
    """Fails in the middle of an answer that began well."""
    async def parts():
        yield b"half"
        raise RuntimeError("the rest is lost")

    return StreamingResponse(parts())


@app.get("/test/seen")
async def seen():
    return SEEN


@app.post("/test/misbehave")
async def misbehave(request: Request):
    MISBEHAVE.update(await request.json())
    return MISBEHAVE


config = Config(app, build=Processor, socket=os.environ["DROPIN_SOCKET"], remember=os.environ["DROPIN_REMEMBER"], apply=Processor.set,
                admit=lambda values: MISBEHAVE["admit"] and large(values) and MISBEHAVE["admit"], on_change=on_change,
                close=Processor.close)
