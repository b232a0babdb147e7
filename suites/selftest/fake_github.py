"""A GitHub for tests: a stateful HTTP server on the loopback.

What it is asked and what it answers is validated against githubkit's models, so that it cannot
drift from what GitHub documents. Answers are its world, filled up with what the models require.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import github_models as models
from github_endpoints import QUERIES, ROUTES, Endpoints
from github_world import BOT, HEAD, REPOSITORY, TOKEN, Answer, Page, World, run, zipped

__all__ = ["BOT", "HEAD", "REPOSITORY", "TOKEN", "FakeGitHub", "World", "run", "zipped"]


class FakeGitHub(Endpoints):
    """The server. ``calls`` has every request that was let through, ``changes`` those that changed
    something, in order; ``problems`` what a real GitHub would never have been asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[str] = []
        self.changes: list[tuple[str, str, Any]] = []
        self.problems: list[str] = []
        self.dead = False
        self._lock = threading.RLock()
        self._barriers: dict[int, threading.Barrier] = {}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                fake._serve(self)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_one

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._store = Server(("127.0.0.1", 0), Handler)  # where artifacts lie: another origin
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.store_url = f"http://127.0.0.1:{self._store.server_port}"

    @contextmanager
    def serving(self) -> Iterator[FakeGitHub]:
        threads = [
            threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            for one in (self._server, self._store)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for one in (self._server, self._store):
                one.shutdown()
                one.server_close()

    # -- one request -------------------------------------------------------------------------------

    def _serve(self, handler: Any) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        raw = handler.rfile.read(length)
        parts = urlsplit(handler.path)
        method, path = handler.command, parts.path
        store = handler.server is self._store
        fault = None if store else self._fault(method, path)
        if fault and "barrier" in fault:
            self._barrier(fault).wait(timeout=20)
            fault = None
        if self.dead or (fault and fault.get("drop") == "before"):
            self._drop(handler, fault)
            return
        headers: dict[str, str] = {}
        try:
            if store:
                body: Any = self._blob(handler, path)
                status = 200
            else:
                if fault and "status" in fault:
                    raise Answer(fault["status"], fault.get("message", ""), fault.get("headers"))
                with self._lock:
                    self._authorised(handler)
                    query = dict(parse_qsl(parts.query))
                    status, body, headers = self._route(method, path, query, raw)
        except Answer as answer:
            status, headers = answer.status, answer.headers
            body = models.error(answer.message, status)
        except Exception as error:  # a fault of the fake's, or a request that is none
            self.problems.append(f"{method} {path}: {type(error).__name__}: {error}")
            status, body = 422, models.error(str(error), 422)
        if fault and fault.get("drop") == "after":
            self._drop(handler, fault)
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        content = b"" if status == 204 else content
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _fault(self, method: str, path: str) -> dict[str, Any] | None:
        with self._lock:
            for fault in self.world.faults:
                if fault.get("times", 1) < 1 or not re.fullmatch(fault["on"], f"{method} {path}"):
                    continue
                if fault.get("let", 0) > 0:
                    fault["let"] -= 1
                    continue
                fault["times"] = fault.get("times", 1) - 1
                if "move_head" in fault:
                    self.world.head_sha = fault["move_head"]
                    return None
                return fault
        return None

    def _barrier(self, fault: dict[str, Any]) -> threading.Barrier:
        with self._lock:
            return self._barriers.setdefault(id(fault), threading.Barrier(fault["barrier"]))

    def _drop(self, handler: Any, fault: dict[str, Any] | None) -> None:
        if fault and fault.get("dies"):
            self.dead = True
        handler.close_connection = True
        handler.connection.close()

    def _authorised(self, handler: Any) -> None:
        if handler.headers.get("Authorization") not in (None, f"token {TOKEN}"):
            raise Answer(401, "Bad credentials")
        if not handler.headers.get("User-Agent"):
            raise Answer(403, "Request forbidden by administrative rules")

    def _blob(self, handler: Any, path: str) -> bytes:
        if handler.headers.get("Authorization"):
            self.problems.append("the token was sent to the store of artifacts")
        number = int(path.rpartition("/")[2])
        artifacts = [one for run in self.world.runs for one in run.get("artifacts", [])]
        found = next(one for one in artifacts if one["id"] == number)
        return found["content"] if "content" in found else zipped(found.get("files", {}))

    def _route(
        self, method: str, path: str, query: dict[str, str], raw: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        repository = f"/repos/{REPOSITORY}"
        inside = path.removeprefix(repository) if path.startswith(repository) else path
        for verb, pattern, name, request in ROUTES:
            found = re.fullmatch(pattern, inside)
            if verb != method or found is None:
                continue
            self.calls.append(f"{method} {inside}")
            unknown = set(query) - (models.parameters(QUERIES[name]) if name in QUERIES else set())
            assert not unknown, f"unknown query parameters: {sorted(unknown)}"
            body = models.request(request, raw) if request else None
            if method != "GET":
                self.changes.append((method, inside, json.loads(raw) if raw else None))
            result = getattr(self, f"_{name}")(*found.groups(), query=query, body=body)
            status, answer = result if isinstance(result, tuple) else (200, result)
            headers = {}
            if isinstance(answer, Page):
                headers = answer.headers(self.url + path, query)
                answer = answer.body()
            if status == 302:
                headers = {"Location": answer}
                answer = {}
            return status, answer, headers
        raise AssertionError(f"no such endpoint: {method} {path}")
