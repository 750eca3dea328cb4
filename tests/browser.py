"""Debian's Chromium without a window, over the WebDriver protocol of its chromedriver."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()


class Browser:
    """A browser whose profile lies in an empty folder."""

    def __init__(self, folder: Path) -> None:
        programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
        if not all(programs):
            pytest.skip("chromium and chromedriver are not installed")
        self.log = open(folder / "chromedriver.log", "w+")  # noqa: SIM115
        command = [programs[1], "--port=0", "--readable-timestamp"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.session = f"http://127.0.0.1:{self._port(folder)}/session"
        options = {"binary": programs[0], "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        started = self._send("", {"capabilities": {"alwaysMatch": wanted}})
        self.session += f"/{started['sessionId']}"

    def _port(self, folder: Path) -> int:
        for _ in range(300):
            if found := re.search(r"started successfully on port (\d+)\.", (folder / "chromedriver.log").read_text()):
                return int(found[1])
            time.sleep(0.1)
        raise TimeoutError("chromedriver did not start")

    def _send(self, command: str, body: dict | None = None, method: str = "POST") -> object:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self.session + command, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        self._send("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": scheme})
        self._send("/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> object:
        """The value that the script returns."""
        return self._send("/execute/sync", {"script": script, "args": []})

    def complaints(self) -> list[str]:
        """What the console has printed since the last call."""
        return [entry["message"] for entry in self._send("/se/log", {"type": "browser"})]

    def screenshot(self, path: Path, whole: bool = True) -> None:
        shot = self._send(
            "/goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": whole}}
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        try:
            self._send("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait(30)
            self.log.close()
