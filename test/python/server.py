"""A DTESN server as the Python ones of the family are: FastAPI under uvicorn.

It is real in what an agent meets: the HTTP of uvicorn, pydantic's refusals,
the event loop, workers. It computes nothing. Start it with

    python3 -m uvicorn --app-dir test/python --uds SOCKET server:app

Its ways, as seen on such servers: failures answer 200 with success false; the
timestamp of GET current is an object; the configuration has fields that are
not the agent's; the environment is a label, `development` at start, and an
update for another environment is refused; validate_only inside a batch is
ignored; rollback validates nothing; each worker has a configuration of its own.

Each answer is a line of JSON in the file DTESN_SERVER_LOG. What it does wrong
on purpose stands in MISBEHAVE: at start from the variable DTESN_MISBEHAVE, then
by POST /test/misbehave.
"""

import asyncio
import json
import os
import time
from typing import Any, Dict, List, Optional

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, validator

RANGES = {
    "max_membrane_depth": (1, 64),
    "esn_reservoir_size": (64, 16384),
    "bseries_max_order": (1, 32),
    "cache_ttl_seconds": (1, 86400),
}
DEFAULTS = {
    "max_membrane_depth": 4,
    "esn_reservoir_size": 512,
    "bseries_max_order": 8,
    "enable_caching": True,
    "cache_ttl_seconds": 300,
    "enable_performance_monitoring": True,
    "enable_docs": True,
    "allowed_origins": ["*"],
}
ENVIRONMENTS = ("development", "staging", "production", "testing")

MISBEHAVE: Dict[str, Any] = {
    # How a reservoir of more than `over` units is refused: "error", "errors",
    # "callback" (200, and it runs all the same), "400", "409", "422".
    "refuse": "",
    "over": 2000,
    # Statuses that these paths answer instead of doing their work.
    "batch_status": 0,
    "environment_status": 0,
    # Seconds that a batch, or a reading, takes before it is begun.
    "slow": 0.0,
    "slow_read": 0.0,
    # The process ends when a batch with more than `over` units arrives.
    "die": False,
}
MISBEHAVE.update(json.loads(os.environ.get("DTESN_MISBEHAVE", "{}")))


class Manager:
    """The configuration of one worker, its label and its history."""

    def __init__(self) -> None:
        self.config: Dict[str, Any] = dict(DEFAULTS)
        self.environment = "development"
        self.snapshots: List[Dict[str, Any]] = []
        self.count = 0
        self.snapshot("Initial configuration")

    def snapshot(self, description: str) -> str:
        self.count += 1
        now = time.time()
        for s in self.snapshots:
            s["is_active"] = False
        self.snapshots.append({
            "snapshot_id": f"snapshot_{int(now)}_{self.count:04d}",
            "timestamp": now,
            "description": description,
            "environment": self.environment,
            "is_active": True,
            "validation_errors": None,
            "config_data": dict(self.config),
        })
        del self.snapshots[:-50]
        return self.snapshots[-1]["snapshot_id"]

    def errors(self, config: Dict[str, Any]) -> List[str]:
        found = []
        for name, value in config.items():
            bounds = RANGES.get(name)
            if bounds is None:
                if isinstance(DEFAULTS[name], bool) and not isinstance(value, bool):
                    found.append(f"Invalid value for {name}: {value}")
            elif isinstance(value, bool) or not isinstance(value, int) or not bounds[0] <= value <= bounds[1]:
                found.append(f"Invalid value for {name}: {value}")
        depth, size = config["max_membrane_depth"], config["esn_reservoir_size"]
        if not found and size < depth * 32:
            found.append(f"ESN reservoir size ({size}) should be at least {depth * 32} for membrane depth {depth}")
        return found

    def apply(self, updates: List["Update"], description: str) -> Dict[str, Any]:
        """All of the updates or none; validate_only is not looked at."""
        config, updated = dict(self.config), []
        for u in updates:
            if u.parameter not in config:
                return failure("Update failed", error=f"Unknown parameter: {u.parameter}")
            if u.environment not in (None, self.environment):
                return failure("Update failed", error=f"Update is for {u.environment}, this is {self.environment}")
            updated.append({"parameter": u.parameter, "old_value": config[u.parameter], "new_value": u.value})
            config[u.parameter] = u.value
        found = self.errors(config)
        if found:
            return failure("Update failed", validation_errors=found)
        refused = refusal(config)
        if refused is not None and MISBEHAVE["refuse"] != "callback":
            return refused
        before = self.snapshots[-1]["snapshot_id"]
        self.config = config
        if refused is not None:
            return refused
        after = self.snapshot(description)
        return {
            "success": True,
            "message": f"Updated {len(updated)} parameters",
            "data": {"updated_parameters": updated, "snapshot_id": after, "rollback_snapshot": before},
        }


def failure(message: str, **more: Any) -> Dict[str, Any]:
    return {"success": False, "message": message, **more}


def refusal(config: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """What this server cannot hold, in the shape that was asked for."""
    how, size = MISBEHAVE["refuse"], config["esn_reservoir_size"]
    if size <= MISBEHAVE["over"] or how in ("", "422"):
        return None
    text = f"no memory for {size} units"
    if how == "error":
        return failure("Batch update failed", error=text, attempted_updates=[])
    if how == "errors":
        return failure("Batch update failed", errors=[text, "the limit is set by the operator"])
    if how == "callback":
        return failure("Batch update failed", error=f"Failed to apply batch update: {text}")
    raise HTTPException(status_code=int(how), detail=text)


class Update(BaseModel):
    parameter: str
    value: Any
    description: Optional[str] = None
    validate_only: bool = False
    environment: Optional[str] = None

    @validator("value")
    def fits(cls, value: Any, values: Dict[str, Any]) -> Any:
        large = values.get("parameter") == "esn_reservoir_size" and value > MISBEHAVE["over"]
        if large and MISBEHAVE["refuse"] == "422":
            raise ValueError(f"no memory for {value} units")
        return value


class Batch(BaseModel):
    updates: List[Update]
    description: Optional[str] = None


class Rollback(BaseModel):
    snapshot_id: str


class Environment(BaseModel):
    environment: str


manager = Manager()
router = APIRouter(prefix="/v1/config")


@router.get("/current")
async def current() -> Dict[str, Any]:
    await asyncio.sleep(MISBEHAVE["slow_read"])
    now = time.time()
    return {
        "success": True,
        "configuration": manager.config,
        "environment": manager.environment,
        "timestamp": {"unix": now, "iso": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))},
    }


def status_data() -> Dict[str, Any]:
    return {
        "current_config": manager.config,
        "environment": manager.environment,
        "total_snapshots": len(manager.snapshots),
        "max_snapshots": 50,
        "backup_directory": "/tmp/dtesn_config_backups",
        "auto_backup_enabled": False,
        "registered_callbacks": 0,
    }


@router.get("/status")
async def status() -> Dict[str, Any]:
    return {"success": True, "status": status_data()}


@router.get("/health")
async def health() -> Dict[str, Any]:
    checks = {"config_manager_initialized": True, "config_loaded": True, "snapshots_available": True}
    return {"success": True, "health": {"healthy": True, "checks": checks}, "status": status_data()}


@router.get("/schema")
async def schema() -> Dict[str, Any]:
    info = {name: {"type": "int", "range": f"{low}-{high}"} for name, (low, high) in RANGES.items()}
    return {"success": True, "schema": Update.schema(), "parameter_info": info, "environments": ENVIRONMENTS}


@router.get("/snapshots")
async def snapshots() -> Dict[str, Any]:
    return {"success": True, "snapshots": manager.snapshots[::-1], "total_count": len(manager.snapshots)}


@router.post("/update")
async def update(u: Update) -> Dict[str, Any]:
    if u.validate_only:
        return await validate(u)
    answer = manager.apply([u], u.description or f"Updated {u.parameter}")
    if answer["success"]:
        data = answer["data"]
        answer["data"] = {**data.pop("updated_parameters")[0], **data}
    return answer


@router.post("/batch-update")
async def batch_update(batch: Batch) -> Dict[str, Any]:
    if MISBEHAVE["batch_status"]:
        raise HTTPException(status_code=MISBEHAVE["batch_status"])
    if MISBEHAVE["die"] and any(u.parameter == "esn_reservoir_size" and u.value > MISBEHAVE["over"] for u in batch.updates):
        os._exit(9)
    await asyncio.sleep(MISBEHAVE["slow"])
    return manager.apply(batch.updates, batch.description or f"Batch update of {len(batch.updates)} parameters")


@router.post("/validate")
async def validate(u: Update) -> Dict[str, Any]:
    found = [f"Unknown parameter: {u.parameter}"]
    if u.parameter in manager.config:
        found = manager.errors({**manager.config, u.parameter: u.value})
    return {"success": not found, "message": "Validation completed", "errors": found or None}


@router.post("/rollback")
async def rollback(target: Rollback) -> Dict[str, Any]:
    for s in manager.snapshots:
        if s["snapshot_id"] == target.snapshot_id:
            manager.config = dict(s["config_data"])
            return {"success": True, "message": "Rolled back", "data": {"snapshot_id": manager.snapshot("Rollback")}}
    return failure("Rollback failed", error=f"Snapshot {target.snapshot_id} not found")


@router.post("/environment")
async def environment(e: Environment) -> Dict[str, Any]:
    if MISBEHAVE["environment_status"]:
        raise HTTPException(status_code=MISBEHAVE["environment_status"])
    if e.environment not in ENVIRONMENTS:
        return failure("Environment not set", error=f"Unknown environment: {e.environment}")
    before, manager.environment = manager.environment, e.environment
    return {
        "success": True,
        "message": f"Environment set to {e.environment}",
        "data": {"environment": e.environment, "previous_environment": before},
    }


async def record(request: Request, call_next: Any) -> Any:
    response = await call_next(request)
    path = os.environ.get("DTESN_SERVER_LOG")
    if path and not request.url.path.startswith("/test/"):
        line = {
            "at": time.time(),
            "pid": os.getpid(),
            "method": request.method,
            "path": request.url.path,
            "status": response.status_code,
            "size": manager.config["esn_reservoir_size"],
            "label": manager.environment,
        }
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
    return response


app = FastAPI(title="DTESN")
app.include_router(router)
app.middleware("http")(record)


@app.post("/test/misbehave")
async def misbehave(how: Dict[str, Any]) -> JSONResponse:
    MISBEHAVE.update(how)
    return JSONResponse(MISBEHAVE)


# Another service, one that happens to listen on the socket: it knows none of
# the paths.
other = FastAPI(title="not DTESN")
other.middleware("http")(record)
