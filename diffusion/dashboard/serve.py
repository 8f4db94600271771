"""The page kept live at localhost: it asks for the numbers every few seconds, and only runs whose files changed are read again."""

import hashlib
import mimetypes
import os
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

from diffusion.dashboard.files import picture_of
from diffusion.dashboard.page import compact, contents, html
from diffusion.dashboard.read import Reader, Run
from diffusion.support.errors import UserError


class Live:
    """The runs' numbers as they are now, and the pictures that may be asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.reader, self.lock = Reader(folder), Lock()
        self.signatures: list[tuple[Path, Any]] | None = None
        self.data: dict[str, Any] = {}
        self.stamp = ""

    def read(self) -> tuple[dict, str]:
        """The page's contents and their stamp, which changes when they do."""
        with self.lock:
            runs = self.reader()
            signatures = [(path, signature) for path, (signature, *_) in self.reader.known.items()]
            if signatures != self.signatures:
                self.signatures, self.stamp = signatures, hashlib.sha256(repr(signatures).encode()).hexdigest()[:16]
                self.data = contents(runs, address, str(self.reader.folder), True, self.reader.warnings) | {"stamp": self.stamp}
            return self.data, self.stamp

    def picture(self, name: str, file: str) -> bytes | None:
        """A picture of a run that was read; no other file is ever served."""
        runs = [run for _, run, _ in self.reader.known.values() if run and run.name == name]
        found = [path for run in runs for grids in run.samples.values() for _, path in grids if path.name == file]
        return picture_of(found[0]) if found else None


def address(run: Run, path: Path) -> str:
    """A picture's address on this server."""
    return f"samples/{quote(os.fsencode(run.name), safe='')}/{quote(os.fsencode(path.name), safe='')}"


def named(part: str) -> str:
    """A part of an address as the file system's name, which need not be UTF-8."""
    return os.fsdecode(unquote_to_bytes(part))


class Handler(BaseHTTPRequestHandler):
    """/ is the page, /data.json?since=STAMP its content (empty if STAMP is still current), /samples/RUN/FILE a picture."""

    def __init__(self, live: Live, *args: Any) -> None:
        self.live = live
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer one request. A request for another host than localhost comes from a foreign page that tries to read ours."""
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            return self.send_error(403)
        url = urlsplit(self.path)
        match url.path.split("/")[1:]:
            case [""]:
                self.answer(html(self.live.read()[0]).encode(), "text/html; charset=utf-8")
            case ["data.json"]:
                data, stamp = self.live.read()
                since = parse_qs(url.query).get("since")
                self.answer(b"" if since == [stamp] else compact(data).encode(), "application/json")
            case ["samples", name, file] if picture := self.live.picture(named(name), named(file)):
                self.answer(picture, mimetypes.guess_type(file)[0] or "application/octet-stream")
            case _:
                self.send_error(404)

    def answer(self, body: bytes, kind: str) -> None:
        """200 with `body`, 204 without one."""
        self.send_response(200 if body else 204)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=3600" if kind == "image/png" else "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def server(folder: str | Path, port: int) -> ThreadingHTTPServer:
    """Ready to `serve_forever()`, reachable from this machine only; port 0 takes a free one. Raises UserError if the port is taken."""
    live = Live(folder)
    html(live.read()[0])  # says now what would be missing
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, live))
    except OSError as error:
        raise UserError(f"Port {port} cannot be used ({error.strerror}): give another one, as in --serve {port + 1}.") from error
