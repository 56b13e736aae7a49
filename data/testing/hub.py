"""A toy Hugging Face hub for the tests: webis/tldr-17 in the layout of its Parquet conversion, served on loopback.

It answers what `datasets` and `huggingface_hub` ask for in order to stream a public dataset: the repository's description,
its listing, the description of single paths, and byte ranges of its files, behind the redirect that the real hub sends.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import pyarrow
import pyarrow.parquet

REPOSITORY = "webis/tldr-17"
BRANCH = "refs/convert/parquet"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SUBREDDITS = ("AskReddit", "relationships", "tifu")


def write_shards(folder, posts=240, shards=3):
    """Parquet files `default/partial-train/0000.parquet`, ... in `folder`, with the columns of webis/tldr-17.

    Post i is in subreddit i mod 3.
    """
    folder = Path(folder) / "default" / "partial-train"
    folder.mkdir(parents=True)
    rows = [
        {
            "author": f"author{i}", "body": "unused", "normalizedBody": "unused", "summary": "unused", "id": f"c{i:05d}",
            "subreddit": SUBREDDITS[i % 3], "subreddit_id": f"t5_{i % 3}",
            "content": f"Post {i} in {SUBREDDITS[i % 3]}. " + f"The number {i * 7919} comes after {i * 7919 - 1} 🙂. " * 8,
        }
        for i in range(posts)
    ]
    size = -(-posts // shards)
    for shard in range(shards):
        table = pyarrow.Table.from_pylist(rows[shard * size : (shard + 1) * size])
        pyarrow.parquet.write_table(table, folder / f"{shard:04d}.parquet", row_group_size=20)
    return folder


class Hub(ThreadingHTTPServer):
    """Serves `folder`. If `drop(path)` returns True, the connection on which `path` was asked for is cut without an answer."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = Path(folder)
        self.drop = lambda path: False
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that was killed has closed its connection: nothing to report."""

    def die(self):
        """Refuse connections and cut those that are open, from now on."""
        self.drop = lambda path: True
        self.shutdown()
        self.server_close()
        return True

    def described(self, path):
        """A file or folder of the repository as the hub's listing describes it."""
        found = self.folder / path
        if found.is_dir():
            return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
        return {"type": "file", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": found.stat().st_size, "path": path}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        url = urlparse(self.path)
        path = unquote(url.path)
        if self.server.drop(path):
            self.close_connection = True
            return self.connection.close()
        if re.fullmatch(f"/api/datasets/{REPOSITORY}/revision/(?:{COMMIT}|{BRANCH})", path):
            return self.send_json(
                {
                    "id": REPOSITORY, "sha": COMMIT, "private": False, "disabled": False, "gated": False,
                    "downloads": 0, "likes": 0, "tags": [], "siblings": [],
                }
            )
        if match := re.fullmatch(f"/api/datasets/{REPOSITORY}/tree/{COMMIT}/?(.*)", path):
            return self.send_tree(match[1], "recursive" in url.query and parse_qs(url.query)["recursive"][0].lower() == "true")
        if re.fullmatch(f"/api/datasets/{REPOSITORY}/paths-info/{COMMIT}", path):
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return self.send_json([self.server.described(p) for p in wanted if (self.server.folder / p).exists()])
        if match := re.fullmatch(f"/datasets/{REPOSITORY}/resolve/(?:{COMMIT}|{BRANCH})/(.+)", path):
            return self.redirect(match[1])
        if path.startswith("/files/"):
            return self.send_range(path.removeprefix("/files/"))
        return self.send_missing("RepoNotFound")

    def send_bytes(self, status, content, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value):
        self.send_bytes(200, json.dumps(value).encode(), Content_Type="application/json")

    def send_missing(self, code):
        self.send_bytes(404, b"", X_Error_Code=code, X_Error_Message="not found")

    def send_tree(self, path, recursive):
        folder = self.server.folder / path
        if not folder.is_dir():
            return self.send_missing("EntryNotFound")
        found = sorted(folder.rglob("*") if recursive else folder.iterdir())
        return self.send_json([self.server.described(str(p.relative_to(self.server.folder))) for p in found])

    def redirect(self, path):
        if not (self.server.folder / path).is_file():
            return self.send_missing("EntryNotFound")
        size = self.server.described(path)["size"]
        headers = {
            "Location": f"{self.server.url}/files/{path}", "X_Repo_Commit": COMMIT, "X_Linked_Size": size,
            "X_Linked_Etag": f'"{COMMIT}"', "ETag": f'"{COMMIT}"',
        }
        return self.send_bytes(302, b"", **headers)

    def send_range(self, path):
        content = (self.server.folder / path).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.send_bytes(200, content, Accept_Ranges="bytes")
        start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        return self.send_bytes(206, content[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(content)}")


@contextmanager
def toy_hub(folder):
    """A `Hub` that serves `folder` on a free port of loopback until the block ends."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
