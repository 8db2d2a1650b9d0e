"""Live parameters for a FastAPI or Starlette server, applied by dtesn-agent.
Two lines mount it, at the end of server.py, behind the routes and the middleware:
    from dtesn_config import Config
    config = Config(app, build=Processor, socket="/run/dtesn/engine.sock", remember="/var/lib/dtesn/config.json")
Start `config` in place of `app`: python3 -m uvicorn server:config --port 8000. Users come over TCP, the agent over the
Unix socket (mode 0600, or what `mode` says). Routes use config.processor: a request has the same one to its end. Hooks:
    build(values)             returns a processor. Runs in a thread while the old one serves
    apply(processor, values)  sets what is not `critical`; quick, in the event loop. Without it every change builds
    admit(values)             returns why the values are refused, or None. Runs in a thread
    on_change(values)         is told the new values before they are built or set; what it raises refuses them. Runs in a thread, or is async
    close(processor)          ends an old processor after its last request. Runs in a thread of its own

What any but close raises refuses the change, and the old processor serves on. One worker, with lifespan; memory
for two processors during a build, for which a stop waits. Python 3.9 or newer, no other package."""

import asyncio
import bisect
import collections
import concurrent.futures
import contextvars
import fcntl
import json
import logging
import os
import pathlib
import socket as sockets
import time
import types

PARAMETERS = {  # type: int, number, bool or string (with `values`); critical: a change builds; default None: may be unset
    "max_membrane_depth": {"type": "int", "minimum": 1, "maximum": 64, "default": 4, "critical": True},
    "esn_reservoir_size": {"type": "int", "minimum": 64, "maximum": 16384, "default": 512, "critical": True},
    "bseries_max_order": {"type": "int", "minimum": 1, "maximum": 32, "default": 8, "critical": True},
    "enable_caching": {"type": "bool", "default": True}, "enable_performance_monitoring": {"type": "bool", "default": True},
    "cache_ttl_seconds": {"type": "int", "minimum": 1, "maximum": 86400, "default": 300},
}
ENVIRONMENTS = ("development", "testing", "staging", "production")
KINDS = {"int": (int,), "number": (int, float), "bool": (bool,), "string": (str,)}
MAX_BODY, MAX_WAIT = 1 << 20, 75  # of a request: bytes, seconds
BOUNDS = [1e-4 * 2 ** (n / 4) for n in range(84)]  # of the histogram: 0.1 ms to 3 minutes in steps of 19 %
log, in_request, closing = logging.getLogger("dtesn_config"), contextvars.ContextVar("dtesn_generation"), concurrent.futures.ThreadPoolExecutor(1)


class Refused(Exception):
    """A status and a reason. Values are refused with 200 and success false, as other DTESN servers do."""


class Figures:  # of one configuration; requests that are the client's fault (4xx) do not count
    def __init__(self):
        self.since, self.errors, self.sum, self.counts = time.time(), 0, 0.0, [0] * (len(BOUNDS) + 1)
        self.recent = collections.deque(maxlen=2048)  # (when, seconds, failed)

    def add(self, seconds, failed):
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.sum, self.errors = self.sum + seconds, self.errors + failed
        self.recent.append((time.monotonic(), seconds, failed))

    def report(self):
        count, buckets = sum(self.counts), [{"le": le, "count": sum(self.counts[:n + 1])} for n, le in enumerate(BOUNDS)]
        return {"since": self.since, "requests": count, "errors": self.errors,
                "latency_seconds": {"count": count, "sum": self.sum, "buckets": buckets}}


class Config:
    def __init__(self, app, build, socket, remember=None, apply=None, admit=None, on_change=None, close=None, parameters=PARAMETERS,
                 memory_limit=None, max_lag=1.0, max_error_rate=0.1, max_p99=10.0, mode=0o600):  # bytes, s, share, s, of the socket
        self.app, self.build, self.socket, self.remember = app, build, socket, remember
        self.apply, self.admit, self.on_change, self.close, self.parameters = apply, admit, on_change, close, parameters
        self.memory_limit = memory_limit or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.max_lag, self.max_error_rate, self.max_p99, self.mode = max_lag, max_error_rate, max_p99, mode
        self.revision, self.environment, self.values = "", "development", {n: p.get("default") for n, p in parameters.items()}
        self.generation = self.figures = self.previous = self.building = self.remembered = None

    @property
    def processor(self):
        return (in_request.get(self.generation) or not_started()).processor

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, lambda message: self.live(message, send))
        if scope["type"] == "http" and "/v1/config/" in scope["path"] + "/":  # the application's too: one way to change
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            return await send({"type": "http.response.body"})
        mine, figures, begun, sent = self.generation or not_started(), self.figures, time.monotonic(), {}
        in_request.set(mine)
        async def sending(message):
            await send(message)
            sent.update(message, at=time.monotonic())
        mine.requests += 1
        try:
            await self.app(scope, receive, sending)
        except Exception:
            sent.update(status=500, at=time.monotonic())
            raise
        finally:
            mine.requests -= 1
            self.end(mine)
            if scope["type"] == "http" and sent.get("status", 400) // 100 != 4:
                figures.add(sent["at"] - begun, sent["status"] >= 500)

    async def live(self, message, send):
        if message["type"] == "lifespan.startup.complete":
            await self.open()
        elif message["type"] == "lifespan.shutdown.complete":
            self.server.close()
            pathlib.Path(self.socket).unlink(missing_ok=True)  # newer Pythons remove it themselves
            last, self.generation = self.generation, None
            self.end(last)
        await send(message)

    async def open(self):
        self.lock = open(self.socket + ".lock", "w")
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(f"{self.socket} belongs to another server or worker: start one, with one worker") from None
        self.changing, self.writing = asyncio.Lock(), asyncio.Lock()  # Python 3.9 binds a lock to the loop it is made in
        self.generation, self.figures = types.SimpleNamespace(number=1, processor=await self.recall(), requests=0), Figures()
        if os.path.lexists(self.socket) and not os.path.isfile(self.socket):
            os.unlink(self.socket)
        listener = sockets.socket(sockets.AF_UNIX)
        os.fchmod(listener.fileno(), self.mode)  # before bind: there is no moment at which others may connect
        listener.bind(self.socket)
        self.server = await asyncio.start_unix_server(self.serve, sock=listener)

    def end(self, old):
        if old is not self.generation and not old.requests and self.close:
            asyncio.get_running_loop().run_in_executor(closing, self.close, old.processor)  # the loop logs what it raises

    async def recall(self):
        try:
            kept = strict(pathlib.Path(self.remember).read_bytes())
            typed(kept, configuration=dict, environment=str, revision=str)
            values = {name: kept["configuration"].get(name, value) for name, value in self.values.items()}
            self.fit(values)  # today's parameters may have other bounds
            processor = await asyncio.to_thread(tried, self.build, dict(values))
            self.values, self.revision, self.environment = values, kept["revision"], kept["environment"]
            return processor
        except Exception as error:
            log.log(logging.DEBUG if isinstance(error, (FileNotFoundError, TypeError)) else logging.WARNING, "%s is not used: %r", self.remember, error)
            return await asyncio.to_thread(tried, self.build, dict(self.values))

    async def keep(self):
        async with self.writing:
            text = json.dumps({"configuration": self.values, "environment": self.environment, "revision": self.revision})
            try:
                if self.remember and text != self.remembered:
                    await asyncio.to_thread(write, self.remember, text)
                    self.remembered = text
            except OSError as error:  # refuses nothing: after a restart the agent brings the configuration back
                log.error("the configuration is not remembered: %r", error)

    def fit(self, values):
        for name, value in values.items():
            p = self.parameters.get(name)
            if p is None:
                raise Refused(200, f"Unknown parameter: {name}")
            good = type(value) in KINDS[p["type"]] and value in p.get("values", [value])
            if good and p["type"] in ("int", "number"):  # 1e999 is read as infinity
                good = p.get("minimum", -1.7e308) <= value <= p.get("maximum", 1.7e308)
            if not good and (value is not None or p.get("default", 0) is not None):
                raise Refused(200, f"Invalid value for {name}: {json.dumps(value)[:80]}")

    async def batch(self, body, gone):
        typed(body, updates=list, revision=str, validate_only=bool)
        changed, updates = {}, body.get("updates") or [{}]
        for update in updates:
            typed(update, parameter=str, environment=str, validate_only=bool)
            if "value" not in update or update.get("parameter") in changed:
                raise Refused(400, "there is an update without a value, or a parameter is set twice")
            changed[update.get("parameter")] = update["value"]
        self.fit(changed)
        dry = any(part.get("validate_only") for part in [body, *updates])
        async with self.changing:  # one at a time, in the order of arrival
            if gone():  # it stopped waiting before its turn, and may want something else by now
                raise Refused(408, "the sender is gone")
            for label in {update.get("environment") for update in updates} - {self.environment, None, ""}:
                raise Refused(403, f"the batch is for {label}, this server is labelled {self.environment}")
            values, self.building = {**self.values, **changed}, None if dry else {"revision": body.get("revision", ""), "since": time.time()}
            try:
                if reason := values != self.values and await asyncio.to_thread(tried, self.admit, dict(values)):
                    raise Refused(200, reason)
                if values != self.values and not dry:
                    if asyncio.iscoroutine(told := await asyncio.to_thread(tried, self.on_change, dict(values))):
                        await told
                    await self.switch(values)
            finally:
                self.building = None
            self.revision = self.revision if dry else body.get("revision", "")
            await self.keep()
        return {"success": True, "message": "valid" if dry else "applied"}

    async def switch(self, values):
        if self.apply and not any(values[n] != self.values[n] for n, p in self.parameters.items() if p.get("critical")):
            try:
                tried(self.apply, self.processor, dict(values))
            except Refused:
                self.apply(self.processor, dict(self.values))
                raise
        else:
            processor, old = await asyncio.to_thread(tried, self.build, dict(values)), self.generation
            self.generation = types.SimpleNamespace(number=old.number + 1, processor=processor, requests=0)
            self.end(old)
        self.values, self.previous, self.figures = values, self.figures, Figures()

    async def relabel(self, body, gone):
        typed(body, environment=str)
        if body.get("environment") not in ENVIRONMENTS:
            raise Refused(400, f"Unknown environment: {body.get('environment')}")
        self.environment = body["environment"]
        await self.keep()
        return {"success": True, "message": f"labelled {self.environment}"}

    async def current(self, body, gone):
        return {"success": True, "configuration": self.values, "environment": self.environment, "revision": self.revision,
                **({"building": self.building} if self.building else {})}

    async def status(self, body, gone):
        return {"success": True, "status": {
            "current_config": self.values, "environment": self.environment, "revision": self.revision, "generation": self.generation.number,
            "memory_bytes": int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "memory_limit_bytes": self.memory_limit, "performance": self.figures.report(), "previous": self.previous and self.previous.report()}}

    async def health(self, body, gone):
        begun, answer, _ = time.monotonic(), await self.status(body, gone), await asyncio.sleep(0.05)
        lag, p99, rate = time.monotonic() - begun - 0.05, 0, 0
        recent = [(seconds, failed) for when, seconds, failed in self.figures.recent if when > begun - 30]
        if len(recent) >= 20:  # fewer say nothing of rates
            p99, rate = sorted(recent)[len(recent) * 99 // 100][0], sum(failed for _, failed in recent) / len(recent)
        checks = {"event_loop": lag <= self.max_lag, "memory": answer["status"]["memory_bytes"] <= self.memory_limit,
                  "error_rate": rate <= self.max_error_rate, "latency": p99 <= self.max_p99}
        return {**answer, "health": {"healthy": all(checks.values()), "checks": checks}}

    async def schema(self, body, gone):
        return {"success": True, "parameter_info": self.parameters, "environments": ENVIRONMENTS}

    async def serve(self, reader, writer):
        """Answers one HTTP request. The configuration is no part of the application, so that TCP cannot reach it."""
        try:
            request, body = await asyncio.wait_for(receive(reader), MAX_WAIT)
            routes = {"GET current": self.current, "GET status": self.status, "GET health": self.health,
                      "GET schema": self.schema, "POST batch-update": self.batch, "POST environment": self.relabel}
            if request not in routes:
                raise Refused(404, f"no {request}; there are: {', '.join(routes)}")
            status, answer = 200, await routes[request](strict(body) if body else {}, reader.at_eof)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return writer.close()
        except Refused as error:
            status, answer = error.args[0], {"success": False, "errors": [" ".join(str(error.args[1]).split())]}
        except Exception as error:
            log.exception("%s failed", request)
            status, answer = 200, {"success": False, "errors": [" ".join(f"{type(error).__name__}: {error}".split())]}
        text = json.dumps(answer)
        head = f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        writer.write((head + text).encode())
        writer.close()


def tried(hook, *values):
    try:
        return hook and hook(*values)
    except BaseException as error:  # asyncio cannot pass on all of them, such as StopIteration
        log.exception("a hook failed")
        raise Refused(200, f"{type(error).__name__}: {error}") from error


def not_started():
    raise RuntimeError("the Config was not started: start server:config in place of server:app, with lifespan on")


async def receive(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").replace("/v1/config/", "", 1).split("\r\n")
    lengths = [f.split(":")[1].strip() for f in head if f.lower().startswith(("content-length:", "transfer-encoding:"))]
    if len(lengths) > 1 or not all(n.isdecimal() and int(n) <= MAX_BODY for n in lengths):
        raise Refused(413, f"a body needs one Content-Length, of at most {MAX_BODY}")
    return head[0].rpartition(" ")[0], await reader.readexactly(int("".join(lengths) or 0))


def strict(text):
    def once(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)
    try:
        return json.loads(text.decode(), object_pairs_hook=once, parse_constant=int)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from error


def typed(value, **kinds):
    for name, kind in kinds.items():
        if type(value) is not dict or type(value.get(name, kind())) is not kind:
            raise Refused(400, f"{name} is not of the type {kind.__name__}")


def write(path, text):
    with open(path + ".new", "w") as file:
        print(text, end="", file=file, flush=True)
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
