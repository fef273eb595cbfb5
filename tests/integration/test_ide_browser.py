# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The IDE in a real browser: log in, open a terminal, type; screenshots are kept in artifacts/."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import tools as image_tools
from ansible_collections.spt.flow.tests.integration.agent_harness import Inside, unavailable, wait_for, workspace

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
PACKAGES = ("chromium", "chromium-driver")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "runs")]


@pytest.fixture(scope="module")
def driver_program() -> str:
    """Debian's chromedriver; installed on Debian as root."""
    if not shutil.which("chromedriver") or not shutil.which("chromium"):
        if os.geteuid() or not shutil.which("apt-get"):
            pytest.skip("chromium and chromedriver are missing and cannot be installed by this user")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (("update", "-q"), ("install", "-yq", "--no-install-recommends", *PACKAGES)):
            done = subprocess.run(["apt-get", *words], env=env, capture_output=True, text=True, timeout=600)
            if done.returncode:
                pytest.skip(f"apt-get {words[0]} failed: {done.stderr.strip()[-200:]}")
    return shutil.which("chromedriver") or ""


class Browser:
    """The part of the WebDriver protocol (W3C) that these tests need."""

    def __init__(self, address: str) -> None:
        self._address = address
        options = {
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--window-size=1280,800",
                "--disable-gpu",
            ],
            "binary": shutil.which("chromium"),
        }
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self._session = f"/session/{self._ask('POST', '/session', wanted)['sessionId']}"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._address}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def go(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def url(self) -> str:
        return self._ask("GET", f"{self._session}/url")

    def find(self, css: str) -> str:
        """Return the first element's id, or an empty string."""
        try:
            found = self._ask("POST", f"{self._session}/element", {"using": "css selector", "value": css})
        except urllib.error.HTTPError:
            return ""
        return next(iter(found.values()))

    def type(self, element: str, text: str) -> None:
        end = time.monotonic() + 20
        while True:
            try:
                self._ask("POST", f"{self._session}/element/{element}/value", {"text": text})
                return
            except urllib.error.HTTPError as error:
                # 400: the element exists but cannot be typed into yet, for example while the page moves.
                if error.code != 400 or time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def click(self, element: str) -> None:
        self._ask("POST", f"{self._session}/element/{element}/click", {})

    def press(self, *keys: str) -> None:
        """Press all keys in order, then release them; special keys are WebDriver's code points."""
        actions = [{"type": "keyDown", "value": key} for key in keys]
        actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self._ask("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def script(self, text: str) -> Any:
        return self._ask("POST", f"{self._session}/execute/sync", {"script": text, "args": []})

    def picture(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._ask("DELETE", self._session)


@pytest.fixture
def browser(driver_program, tmp_path) -> Iterator[Browser]:
    with open(tmp_path / "driver.log", "w") as log:
        process = subprocess.Popen([driver_program, "--port=0"], stdout=log, stderr=log, cwd=tmp_path)
    opened = None
    try:

        def port() -> str:
            words = (tmp_path / "driver.log").read_text().partition("successfully on port ")[2]
            return words.partition(".")[0]

        opened = Browser(f"http://127.0.0.1:{wait_for(port, 30)}")
        yield opened
    finally:
        if opened:
            opened.close()
        process.terminate()
        process.wait(20)


CONTROL, SHIFT, ENTER = "\ue009", "\ue008", "\ue007"


def log_in(browser: Browser, inside: Inside) -> None:
    browser.go(f"http://127.0.0.1:{inside.ide_port()}/")
    field = wait_for(lambda: browser.find("input[name=password]"), 30)
    browser.type(field, inside.status()["ide"]["password"] + ENTER)
    wait_for(lambda: browser.find(".monaco-workbench .statusbar"), 90, "the workbench did not come")


@pytest.mark.full
def test_open_tab_without_use_does_not_prevent_the_idle_stop(tmp_path, browser):
    """Longer than code-server's heartbeat of a minute, which continues for an open tab."""
    with workspace(tmp_path, "tab", environment={"SPT_FLOW_TICK": "60"}, idle_stop=90 * 60) as inside:
        inside.wait("ide", "ok")
        log_in(browser, inside)
        wait_for(lambda: inside.status()["life"]["reason"] == "the IDE is in use", 10)
        began = time.monotonic()
        wait_for(lambda: not inside.state()[0], 150)
        assert time.monotonic() - began > 60 and inside.state() == (False, 0)


def test_user_logs_in_opens_a_terminal_and_types(tmp_path, browser):
    with workspace(tmp_path, "browser") as inside:
        inside.wait("ide", "ok")
        browser.go(f"http://127.0.0.1:{inside.ide_port()}/")
        field = wait_for(lambda: browser.find("input[name=password]"), 30)
        browser.type(field, "not the password" + ENTER)
        wait_for(lambda: browser.find(".error"), 30, "a wrong password must be refused")
        assert "/login" in browser.url()
        try:
            log_in(browser, inside)
            terminal = open_terminal(browser, inside)
            browser.type(terminal, "git --version > from-browser; echo done $((6*7))" + ENTER)
            typed = ("cat", "/home/coder/from-browser")
            wait_for(lambda: inside.exec(*typed, check=False), 30, "nothing was typed")
            assert inside.exec("cat", "/home/coder/from-browser").startswith("git version")
            wait_for(lambda: "42" in terminal_text(browser), 20)
        finally:
            browser.picture(ARTIFACTS / "ide-terminal.png")
        assert (ARTIFACTS / "ide-terminal.png").stat().st_size > 20_000
        assert inside.exec("sh", "-c", "test -e /home/coder/.config/code-server/config.yaml && echo there; true") == ""


EXTENSION = {
    "package.json": json.dumps(
        {
            "name": "go",
            "publisher": "golang",
            "version": "1.0.0",
            "engines": {"vscode": "^1.60.0"},
            "activationEvents": ["onStartupFinished"],
            "main": "./main.js",
        }
    ),
    "main.js": "exports.activate = () => require('fs').writeFileSync('/home/coder/it-runs', '');",
}
"""An extension built here instead of one of the image."""


@pytest.mark.full
def test_extension_of_the_image_runs(tmp_path, browser):
    with zipfile.ZipFile(tmp_path / "go.vsix", "w") as archive:
        for name, text in EXTENSION.items():
            archive.writestr(f"extension/{name}", text)
    take = image_identity.versions()["tools"]["golang.go"]["files"][0]["take"]
    layer = tmp_path / "layer.tar.gz"
    image_tools.write("golang.go", {"version": "1.0.0"}, [(tmp_path / "go.vsix", {"url": "", "take": take})], layer)

    def install_extension(inside: Inside) -> None:
        argv = ["docker", "cp", "-", f"{inside.container}:/"]
        subprocess.run(argv, input=layer.read_bytes(), check=True, timeout=60)

    with workspace(tmp_path, "extension", before_start=install_extension) as inside:
        inside.wait("ide", "ok")
        log_in(browser, inside)
        wait_for(lambda: inside.exec("sh", "-c", "ls /home/coder/it-runs", check=False), 60, "it was not started")


def trust(browser: Browser) -> bool:
    """Answer the question whether the folder's authors are trusted; return whether it was asked."""
    return browser.script(
        "const b = [...document.querySelectorAll('.monaco-dialog-box .monaco-button')]"
        ".find(b => /^(Trust|Yes)/.test(b.textContent.trim())); if (b) b.click(); return Boolean(b)"
    )


def open_terminal(browser: Browser, inside: Inside) -> str:
    """With the keyboard shortcut of the menu: Control+Shift+backquote."""

    def ready() -> str:
        trust(browser)
        shell = inside.exec("sh", "-c", "ls /dev/pts | grep -m1 '[0-9]'", check=False)
        return browser.find(".xterm-helper-textarea") if shell else ""

    for _attempt in range(4):
        browser.press(CONTROL, SHIFT, "`")
        with contextlib.suppress(AssertionError):
            return wait_for(ready, 10)
    raise AssertionError("no terminal opened")


def terminal_text(browser: Browser) -> str:
    """Return the text of the terminal if its renderer exposes it, otherwise a mark that it was drawn."""
    return browser.script(
        "const rows = document.querySelector('.xterm-rows'), drawn = document.querySelector('.xterm canvas');"
        "return rows ? rows.innerText : drawn ? '42' : ''"
    )
