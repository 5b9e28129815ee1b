"""A stand-in for the Hugging Face hub: it takes commits to model repositories, and keeps them."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the stand-in has: by repository, whether it is private, and its files."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.tokens: set[str] = set()
        self.forbidden = False


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        repo = re.fullmatch(r"/api/models/([^/]+/[^/?]+)", self.path)[1]
        if repo in self.hub.private:
            self.answer({"id": repo, "private": self.hub.private[repo], "siblings": []})
        else:
            self.answer({"error": "Repository not found"}, 404, "RepoNotFound")

    def do_POST(self) -> None:
        self.hub.tokens.add(self.headers["authorization"])
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.hub.forbidden:
            self.answer({"error": "You don't have the rights"}, 403)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.private[repo] = bool(private)
            self.answer({"url": f"http://{self.headers['host']}/{repo}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            self.answer({"files": modes})
        else:
            repo = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path)[1]
            self.commit(repo, [json.loads(line) for line in body.splitlines()])
            address = f"http://{self.headers['host']}/{repo}/commit/1"
            self.answer({"commitUrl": address, "commitOid": "1" * 40, "pullRequestUrl": None})

    def commit(self, repo: str, lines: list[dict]) -> None:
        for line in lines:
            if line["key"] == "header":
                self.hub.messages.append(line["value"]["summary"])
            else:
                content = base64.b64decode(line["value"]["content"])
                self.hub.files.setdefault(repo, {})[line["value"]["path"]] = content

    def answer(self, message: dict, code: int = 200, error: str = "") -> None:
        body = json.dumps(message).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        if error:
            self.send_header("x-error-code", error)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve() -> Iterator[tuple[str, Hub]]:
    """Run a stand-in; yields its address and what it has."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", hub
        server.shutdown()
