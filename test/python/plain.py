"""A DTESN server on Python's standard library alone, one connection at a time.

    python3 plain.py SOCKET MANNERS

MANNERS are HTTP/1.0; HTTP/1.1, which keeps a connection, and with it the whole
server, until the client closes it; or abrupt: HTTP/1.1, each connection closed
behind its first answer, without having said so. A socket that was left behind
is replaced. Each answer is a line of JSON in the file DTESN_SERVER_LOG, as in
server.py.
"""

import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler

STATE = {
    "environment": "development",
    "configuration": {
        "max_membrane_depth": 4,
        "esn_reservoir_size": 512,
        "bseries_max_order": 8,
        "enable_caching": True,
        "cache_ttl_seconds": 300,
        "enable_performance_monitoring": True,
    },
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0" if sys.argv[2] == "HTTP/1.0" else "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/v1/config/current":
            self.answer(200, {"success": True, **STATE, "timestamp": {"iso": "now"}})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/config/environment":
            STATE["environment"] = body["environment"]
        elif self.path == "/v1/config/batch-update":
            STATE["configuration"].update((u["parameter"], u["value"]) for u in body["updates"])
        else:
            return self.answer(404, {"detail": "Not Found"})
        self.answer(200, {"success": True, "message": "done"})

    def answer(self, status, what):
        line = {
            "at": time.time(),
            "pid": os.getpid(),
            "method": self.command,
            "path": self.path,
            "status": status,
            "size": STATE["configuration"]["esn_reservoir_size"],
            "label": STATE["environment"],
        }
        with open(os.environ["DTESN_SERVER_LOG"], "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        text = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        if sys.argv[2] == "abrupt":
            self.close_connection = True


if os.path.lexists(sys.argv[1]):
    os.unlink(sys.argv[1])
socketserver.UnixStreamServer(sys.argv[1], Handler).serve_forever()
