"""A small Hugging Face Hub on this machine: enough of it for the library to upload."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_tests"
LARGE = (".pth", ".npz", ".omni", ".png", ".onnx")


class Hub:
    """What it holds, and what it was sent.

    Attributes:
        repos: Name -> path -> content.
        objects: SHA-256 -> content, of large files.
        sent: SHA-256 of the large files in the order of their arrival.
        commits: Names of the repositories in the order of their commits.
        breaks_after: Large files that it takes before it breaks off; `None`: all.
    """

    def __init__(self, url: str):
        self.url = url
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.commits: list[str] = []
        self.breaks_after: int | None = None

    def preupload(self, repo: str, files: list[dict]) -> list[dict]:
        answer = []
        for file in files:
            content = self.repos[repo].get(file["path"])
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            one = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if content is not None:
                head = b"" if mode == "lfs" else b"blob %d\0" % len(content)
                digest = hashlib.sha256 if mode == "lfs" else hashlib.sha1
                one["oid"] = digest(head + content).hexdigest()
            answer.append(one)
        return answer

    def commit(self, repo: str, lines: list[dict]) -> None:
        self.commits.append(repo)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                self.repos[repo][value["path"]] = content
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.objects[value["oid"]]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, value=None):
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self):
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_PUT(self):
            content = self.body()
            if hub.breaks_after is not None and len(hub.sent) >= hub.breaks_after:
                self.answer(400, {"error": "broken"})
                return
            oid = hashlib.sha256(content).hexdigest()
            assert self.path == f"/lfs/{oid}"
            hub.objects[oid] = content
            hub.sent.append(oid)
            self.answer(200, {})

        def do_GET(self):
            repo = self.path.removeprefix("/api/models/").split("/revision/")[0]
            if repo in hub.repos:
                self.answer(200, {"id": repo, "sha": f"{len(hub.commits):040d}"})
            else:
                self.answer(404, {"error": "not found"})

        def do_POST(self):
            body = self.body()
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
                return
            path = self.path.split("?")[0]
            if path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":  # of a README.md
                self.answer(200, {"errors": [], "warnings": []})
            elif path.endswith("/preupload/main"):
                repo = path.removeprefix("/api/models/").removesuffix("/preupload/main")
                files = hub.preupload(repo, json.loads(body)["files"])
                self.answer(200, {"files": files})
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                self.answer(200, {"objects": [self.wanted(one) for one in objects]})
            elif path.endswith("/commit/main"):
                repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
                hub.commit(repo, [json.loads(line) for line in body.splitlines()])
                mark = f"{len(hub.commits):040d}"
                url = f"{hub.url}/{repo}/commit/{mark}"
                self.answer(200, {"commitUrl": url, "commitOid": mark})
            else:
                self.answer(404, {"error": path})

        def create(self, wanted):
            repo = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != "me":
                self.answer(403, {"error": "You don't have the rights"})
                return
            if repo not in hub.repos:
                hub.private[repo] = wanted.get("visibility") == "private"
            there = repo in hub.repos
            hub.repos.setdefault(repo, {})
            url = {"url": f"{hub.url}/{repo}"}
            self.answer(409 if there else 200, url)

        def wanted(self, one):
            if one["oid"] in hub.objects:
                return one
            href = f"{hub.url}/lfs/{one['oid']}"
            return {**one, "actions": {"upload": {"href": href}}}

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the end of the `with`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = _handler(hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
