"""A mirror of dl.k8s.io and github.com on the loopback that serves real programs, and can be a bad one.

Below `/good` files are served as they are; `/moved` redirects there, as GitHub does; `/cut` ends each program half-way,
`/short` serves half of each as if that were all of it, and `/lie` publishes wrong sums.
"""

from __future__ import annotations

import hashlib
import http.server
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def _publish(file: Path, sums: str) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    text = digest if sums == f"{file.name}.sha256" and not file.suffix else f"{digest}  {file.name}\n"
    file.with_name(sums).write_text(text)


def program(root: Path, path: str, real: Path, sums: str) -> None:
    """Publish a real program at `path`."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(real)
    _publish(file, sums)


def archive(root: Path, path: str, real: dict[str, Path], sums: str) -> None:
    """Publish real programs, by their path in it, as an archive at `path`."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz", compresslevel=1, dereference=True) as opened:
        for member, at in real.items():
            opened.add(at.resolve(), member)
    _publish(file, sums)


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        _, kind, path = self.path.split("/", 2)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", f"/good/{path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file = Path(self.directory, path)
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        is_program = len(content) > 100_000
        if kind == "lie" and not is_program:
            content = content.translate(bytes.maketrans(b"0123456789", b"1234567890"))
        half = content[: len(content) // 2] if is_program else content
        body = half if kind in ("cut", "short") else content
        self.send_response(200)
        self.send_header("Content-Length", str(len(half if kind == "short" else content)))
        self.end_headers()
        with suppress(ConnectionError):  # who asked has seen enough
            self.wfile.write(b"" if self.command == "HEAD" else body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serve the files below `root` while the body runs; return the URL."""

    def handler(*arguments: Any) -> _Handler:
        return _Handler(*arguments, directory=str(root))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
