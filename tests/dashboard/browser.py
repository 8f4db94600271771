"""A headless Chromium spoken to over a pipe (the DevTools protocol needs nothing but JSON and two file descriptors)."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Browser:
    """`Browser(profile folder)`: one page, offline but for 127.0.0.1; what it asked for and complained about is kept."""

    def __init__(self, profile: Path, width=1440, height=1000):
        theirs_in, self.out = os.pipe()
        self.inn, theirs_out = os.pipe()
        line = [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *line, "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(shell, pass_fds=(theirs_in, theirs_out), start_new_session=True, **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.number, self.session = b"", 0, None
        self.requests, self.complaints, self.loaded = [], [], False
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        """One command and its result; events that come before it are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self, timeout=60):
        while b"\0" not in self.buffer:
            assert select.select([self.inn], [], [], timeout)[0], "the browser does not answer"
            part = os.read(self.inn, 1 << 20)
            assert part, "the browser went away"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        self.note(message.get("method"), message.get("params", {}))
        return message

    def note(self, method, params):
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(params["exceptionDetails"].get("exception", {}).get("description", str(params)))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([argument.get("value", argument.get("description")) for argument in params["args"]]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(params["entry"]["text"])
            case "Page.loadEventFired":
                self.loaded = True

    def open(self, url):
        """Load a page; returns the seconds until its load event and two frames drawn after it."""
        self.loaded, start = False, time.perf_counter()
        self("Page.navigate", url=url)
        while not self.loaded:
            self.receive()
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return time.perf_counter() - start

    def js(self, expression):
        """The value of an expression, awaited."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression, timeout=15):
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + timeout
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def screenshot(self, path, width=1440, height=None):
        """The page, or its first `height` pixels, as PNG."""
        height = height or int(self.js("document.documentElement.scrollHeight"))
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(1)
        Path(path).write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))
        self("Emulation.clearDeviceMetricsOverride")

    def close(self):
        """End it and its children, which are a session of their own."""
        os.close(self.out)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.inn)
