"""Takes seckill's events: python3 receiver.py (PORT, and WEBHOOK_SECRETS separated by commas)."""

import hashlib
import hmac
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = [secret.encode() for secret in os.environ["WEBHOOK_SECRETS"].split(",")]
TOLERANCE_S = 300
BODY_BYTES_MAX = 4_000_000

# In your mall: a table with a unique key, written in the same transaction as the work itself.
seen: set[str] = set()
lock = threading.Lock()


def is_genuine(header: str, body: bytes) -> bool:
    parts = [part.partition("=") for part in header.split(",")]
    at = next((value for name, _, value in parts if name == "t"), "")
    if not re.fullmatch(r"[0-9]{1,12}", at) or abs(time.time() - int(at)) > TOLERANCE_S:
        return False
    # While a secret is replaced, each side may know two: one match is enough.
    marks = [value.encode() for name, _, value in parts if name == "v1"][:10]
    text = at.encode() + b"." + body
    right = [hmac.new(secret, text, hashlib.sha256).hexdigest().encode() for secret in SECRETS]
    return any(hmac.compare_digest(mark, one) for mark in marks for one in right)


def handle(event: dict) -> None:
    print("handled", event["id"], event["kind"], flush=True)


class Receiver(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if 0 < length <= BODY_BYTES_MAX else b""
        if not is_genuine(self.headers.get("Seckill-Signature", ""), body):
            self.answer(401)
            return
        event = json.loads(body)
        with lock:
            if event["id"] not in seen:  # From the body: the headers are not signed.
                handle(event)
                seen.add(event["id"])
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Receiver).serve_forever()
