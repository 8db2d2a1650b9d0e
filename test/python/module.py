"""The Python configuration module as it is published, played: its routes, its answers, and the middleware around it.

    python3 -m uvicorn --app-dir python --uds SOCKET module:app

It keeps the module's ways: each failure of values is 200 with success false, the reason in `errors` or in `message`;
the configuration has two fields more; an environment of an update and validate_only in a batch are ignored; true is an
integer, and becomes 1; health cannot be false. MANNERS come from the variable DTESN_MISBEHAVE. Each answer is a line of
JSON in the file DTESN_SERVER_LOG, as in server.py.
"""

import json
import os
import time
from collections import defaultdict, deque
from typing import Any, Dict, List, Optional

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel

MANNERS: Dict[str, Any] = {
    "one_line": False,  # the validator knows allowed_origins, as the one line of docs/python-module.md makes it
    "middleware": [],  # "limit", "security", "validation"
    "burst": 10,  # requests of one client that "limit" lets through
    "window": 60,  # within so many seconds
}
MANNERS.update(json.loads(os.environ.get("DTESN_MISBEHAVE", "{}")))
ENVIRONMENTS = ("development", "staging", "production", "testing")


def integer(low: int, high: int) -> Any:
    return lambda x: isinstance(x, int) and low <= x <= high


def boolean(x: Any) -> bool:
    return isinstance(x, bool)


VALIDATORS = {
    "max_membrane_depth": integer(1, 64),
    "esn_reservoir_size": integer(64, 16384),
    "bseries_max_order": integer(1, 32),
    "cache_ttl_seconds": integer(1, 86400),
    "enable_caching": boolean,
    "enable_docs": boolean,
    "enable_performance_monitoring": boolean,
}
if MANNERS["one_line"]:
    VALIDATORS["allowed_origins"] = lambda v: isinstance(v, list)


class DTESNConfig(BaseModel):
    enable_docs: bool = True
    allowed_origins: List[str] = ["*"]
    max_membrane_depth: int = 8
    esn_reservoir_size: int = 1024
    bseries_max_order: int = 16
    enable_caching: bool = True
    cache_ttl_seconds: int = 300
    enable_performance_monitoring: bool = True


class Update(BaseModel):
    parameter: str
    value: Any
    description: Optional[str] = None
    validate_only: bool = False
    environment: Optional[str] = None


class Batch(BaseModel):
    updates: List[Update]
    description: Optional[str] = None


class Environment(BaseModel):
    environment: str


class State:
    config = DTESNConfig()
    environment = "development"
    snapshots = 1


def status() -> Dict[str, Any]:
    return {
        "current_config": State.config.dict(),
        "environment": State.environment,
        "total_snapshots": min(State.snapshots, 50),
        "max_snapshots": 50,
        "backup_directory": "/tmp/dtesn_config_backups",
        "auto_backup_enabled": True,
        "registered_callbacks": 0,
    }


def answer(success: bool, message: str, data: Any = None, errors: Optional[List[str]] = None) -> Dict[str, Any]:
    return {"success": success, "message": message, "data": data, "errors": errors}


def invalid(config: Dict[str, Any]) -> List[str]:
    """Judges the whole configuration, each time, by name."""
    found = []
    for name, value in config.items():
        if name not in VALIDATORS:
            found.append(f"Unknown parameter: {name}")
        elif not VALIDATORS[name](value):
            found.append(f"Invalid value for {name}: {value}")
    depth, size = config["max_membrane_depth"], config["esn_reservoir_size"]
    if size < depth * 32:
        found.append(f"ESN reservoir size ({size}) should be at least {depth * 32} for membrane depth {depth}")
    return found


def change(updates: List[Update], failed: str, done: str) -> Dict[str, Any]:
    config = State.config.dict()
    for u in updates:
        if u.environment and u.environment not in ENVIRONMENTS:
            raise HTTPException(400, f"Invalid environment: {u.environment}")
        if u.parameter not in config:
            return answer(False, f"Unknown parameter: {u.parameter}", errors=[])
        config[u.parameter] = u.value
    found = invalid(config)
    if found:
        return answer(False, failed, errors=found)
    State.config = DTESNConfig(**config)
    State.snapshots += 2
    return answer(True, done, data={"success": True, "snapshot_id": f"snapshot_{int(time.time())}_{State.snapshots:04d}"})


app = FastAPI(title="the module as published")


@app.get("/v1/config/current")
async def current() -> Dict[str, Any]:
    return {"success": True, "configuration": State.config.dict(), "environment": State.environment, "timestamp": status()}


@app.get("/v1/config/status")
async def get_status() -> Dict[str, Any]:
    return {"success": True, "status": status()}


@app.get("/v1/config/health")
async def health() -> Dict[str, Any]:
    checks = ("config_manager_initialized", "config_loaded", "snapshots_available", "backup_directory_writable")
    return {"success": True, "health": {"healthy": True, "checks": dict.fromkeys(checks, True)}, "status": status()}


@app.get("/v1/config/schema")
async def schema() -> Dict[str, Any]:
    ranges = {"max_membrane_depth": "1-64", "esn_reservoir_size": "64-16384", "bseries_max_order": "1-32", "cache_ttl_seconds": "1-86400"}
    info = {name: {"type": "integer", "range": text} for name, text in ranges.items()}
    return {"success": True, "parameter_info": {**info, "enable_caching": {"type": "boolean"}}, "environments": ENVIRONMENTS}


@app.post("/v1/config/update")
async def update(u: Update) -> Dict[str, Any]:
    return change([u], "Update failed", f"Parameter {u.parameter} updated successfully")


@app.post("/v1/config/batch-update")
async def batch_update(batch: Batch) -> Dict[str, Any]:
    return change(batch.updates, "Batch update failed", f"Batch update of {len(batch.updates)} parameters completed")


@app.post("/v1/config/environment")
async def environment(e: Environment) -> Dict[str, Any]:
    if e.environment not in ENVIRONMENTS:
        raise HTTPException(400, f"Invalid environment: {e.environment}. Valid options: {list(ENVIRONMENTS)}")
    State.environment = e.environment
    return answer(True, f"Environment set to {e.environment}", data={"environment": e.environment})


# The middleware. Over a Unix socket every client has the same address.


async def validation(request: Request, call_next: Any) -> Response:
    """Takes the "cat" of application/json for a command, and raises where that makes the answer a 500."""
    if request.headers.get("content-type") == "application/json":
        return Response("Internal Server Error", 500)
    return await call_next(request)


class Security:
    suspicious = failed = 0

    async def __call__(self, request: Request, call_next: Any) -> Response:
        if self.suspicious >= 3 or self.failed >= 5:  # for 15 minutes
            return Response("Access denied: IP address blocked", 403, {"X-Security-Block": "ip_blocked"})
        agent = request.headers.get("user-agent", "").lower()
        if "config" in request.url.path and any(word in agent for word in ("curl", "wget", "python", "bot", "test")):
            self.suspicious += 1
            return Response("Access denied: suspicious activity detected", 403, {"X-Security-Block": "anomaly_detection"})
        response = await call_next(request)
        self.failed += response.status_code >= 400
        return response


class Limit:
    def __init__(self) -> None:
        self.clients: Dict[str, Any] = defaultdict(deque)

    async def __call__(self, request: Request, call_next: Any) -> Response:
        times, now = self.clients[request.headers.get("user-agent", "")], time.time()
        while times and times[0] <= now - MANNERS["window"]:
            times.popleft()
        if len(times) >= MANNERS["burst"]:
            retry = {"Retry-After": str(MANNERS["window"]), "X-RateLimit-Limit": "100"}
            return Response("Rate limit exceeded. Please slow down your requests.", 429, retry)
        times.append(now)
        return await call_next(request)


async def record(request: Request, call_next: Any) -> Response:
    response = await call_next(request)
    line = {
        "at": time.time(),
        "pid": os.getpid(),
        "method": request.method,
        "path": request.url.path,
        "status": response.status_code,
        "size": State.config.esn_reservoir_size,
        "label": State.environment,
    }
    with open(os.environ["DTESN_SERVER_LOG"], "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
    return response


for name, middleware in (("validation", validation), ("security", Security()), ("limit", Limit())):  # the last one is outermost
    if name in MANNERS["middleware"]:
        app.middleware("http")(middleware)
app.middleware("http")(record)
