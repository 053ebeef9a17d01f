"""A Jupyter server of its own and a real Chromium: `make test-browser` installs them and runs the tests of this folder.

Everything lies in temporary folders: the notebooks, Jupyter's settings and records, the learner's progress.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 90
SETTINGS = {
    # All cells at once, so that they can be counted; otherwise only those in sight are there.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass(frozen=True)
class Server:
    """A running JupyterLab: its address, the folder that it serves, and the learner's record."""

    url: str
    token: str
    folder: Path
    progress: Path

    def address(self, name: str) -> str:
        """Where the notebook `name` opens in JupyterLab, in a workspace without other tabs."""
        return f"{self.url}/lab/tree/{name}?reset&token={self.token}"


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """A JupyterLab on a free port, with a token, that ends together with its kernels."""
    home = tmp_path_factory.mktemp("jupyter")
    server = Server(f"http://127.0.0.1:{_free_port()}", secrets.token_hex(16), home / "notebooks",
                    home / "progress.json")
    server.folder.mkdir()
    for name, values in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--ServerApp.port_retries=0",
               f"--port={server.url.rpartition(':')[2]}", f"--ServerApp.root_dir={server.folder}"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=_environment(home, server), stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(server, process, home / "server.log")
            yield server
        finally:
            _stop(process)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium of the system's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing; run: make test-browser")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.fail(f"no browser is there, none of {', '.join(CHROMIUM)}; install Chromium, or run: make test-browser")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, tmp_path):
    """An empty page, as wide as a laptop's. Where a test fails, a picture of it lies in the test's folder."""
    context = chromium.new_context(viewport={"width": 1366, "height": 900}, locale="en-GB")
    page = context.new_page()
    yield page
    page.screenshot(path=tmp_path / "last.png")
    print(f"What the browser showed at the end: {tmp_path / 'last.png'}")
    context.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(home: Path, server: Server) -> dict[str, str]:
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
               "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
               "IPYTHONDIR": "ipython"}
    # The token goes through the environment: everybody on the machine can read a command line.
    return (os.environ | {name: str(home / folder) for name, folder in folders.items()}
            | {"JUPYTER_TOKEN": server.token, "MINICOGVX_PROGRESS": str(server.progress)})


def _wait_for(server: Server, process: subprocess.Popen, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            opener.open(f"{server.url}/api/status?token={server.token}", timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start within {START_SECONDS} s; it wrote:\n{log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)  # kernels have sessions of their own
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    for left in alive:
        left.kill()
