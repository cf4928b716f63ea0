"""ComfyUI's editor in a headless Chromium, for tests and screenshots. Needs playwright and an installed Chromium.

with Editor(server) as editor:  # a server with frontend=True
    editor.load(workflow)
    graph, audio = editor.prompt(), editor.run()
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any, NamedTuple
from urllib.parse import quote

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from .server import Graph, Server

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
}
# Console messages of ComfyUI's own front end, which are not errors of this pack.
CORE_NOISE = (
    "Failed to load resource",
    "Failed to fetch",
    "Content Security Policy",
    "[Jobs API]",
    "data:application/wasm",
    "ComfyApp graph accessed",
    "(reading 'id')\n    at onChange",  # front end 1.32.9 applies its settings before it has a graph
)
READY = "!!(window.app?.graph && window.LiteGraph?.registered_node_types?.SaveAudio)"
HISTORY = "async () => await (await fetch('/history')).json()"
# Since front end 1.58, a player that is off the screen is in its widget, not in the document.
SHOWN = """names => {
  const widgets = app.graph.nodes.flatMap(node => node.widgets ?? []).map(widget => widget.element)
  const players = [...document.querySelectorAll('audio[src]'), ...widgets]
  return players.map(player => player?.src).find(src => names.some(name => src?.includes(name))) ?? false
}"""


def find_chromium() -> str | None:
    """Path of Chromium: SA3_CHROMIUM, else one on PATH, else None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("SA3_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Box(NamedTuple):
    """A node with its title bar, in graph units."""

    title: str
    x: float
    y: float
    width: float
    height: float


class Editor:
    """The page of a running server; a context manager that always closes the browser.

    nodes2: the second renderer. size: of the window in CSS pixels. scale: device pixels per CSS pixel.
    `errors` collects errors of the console and the page, without CORE_NOISE.
    """

    def __init__(self, server: Server, *, nodes2: bool = False, size: tuple[int, int] = (1600, 900), scale: float = 1) -> None:
        self.errors: list[str] = []
        self.nodes2 = nodes2
        self._server = server
        self._settings = {**SETTINGS, "Comfy.VueNodes.Enabled": nodes2}
        self._view = {"viewport": {"width": size[0], "height": size[1]}, "device_scale_factor": scale}
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None
        self.page: Page | None = None

    def __enter__(self) -> Editor:
        self._playwright = sync_playwright().start()
        try:
            self._browser = self._playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
            self.open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._playwright.stop()  # ends the browser too

    def open(self) -> None:
        """Open the editor in a new browser context; the previous page is closed."""
        if self.page is not None:
            self.page.context.close()
        self.page = self._browser.new_page(**self._view)
        self.page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.request.post(f"{self._server.url}/api/settings", data=self._settings)
        self.page.goto(self._server.url)
        self.page.wait_for_function(READY, timeout=60_000)

    def reload(self, language: str) -> None:
        """Open the editor again in a language: "en", "zh", "ja"."""
        self.page.request.post(f"{self._server.url}/api/settings", data={"Comfy.Locale": language})
        self.page.reload()
        self.page.wait_for_function(READY, timeout=60_000)

    def load(self, workflow: dict[str, Any], name: str = "workflow") -> None:
        """Open a workflow in UI form and fit it into the window."""
        self.page.evaluate("([workflow, name]) => window.app.loadGraphData(workflow, true, true, name)", [workflow, name])
        self.page.wait_for_timeout(500)
        self.fit()

    def fit(self) -> None:
        """Fit the open workflow into the window."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(800)  # the view is animated

    def missing(self) -> list[str]:
        """Node types of the open workflow that are not registered."""
        return self.page.evaluate(
            "() => window.app.graph.nodes.filter(n => !n.isVirtualNode && !window.LiteGraph.registered_node_types[n.type]).map(n => n.type)"
        )

    def boxes(self) -> list[Box]:
        """Title, position and size of the nodes of the open workflow."""
        return [Box(*box) for box in self.page.evaluate("() => window.app.graph.nodes.map(n => [n.title, ...n.getBounding()])")]

    def dialogs(self) -> list[str]:
        """The texts of the visible dialogs."""
        return [text for text in self.page.locator("[role=dialog]:visible").all_inner_texts() if text.strip()]

    def prompt(self) -> Graph:
        """The open workflow in API form, as the queue button sends it."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def run(self, timeout: float = 300.0) -> str:
        """`queue`, then return the URL of a generated audio file once the page shows a player for it."""
        names = [file["filename"] for output in self.queue(timeout)["outputs"].values() for file in output.get("audio", [])]
        return self.page.wait_for_function(SHOWN, arg=[quote(name) for name in names], timeout=timeout * 1000).json_value()

    def queue(self, timeout: float = 300.0) -> dict[str, Any]:
        """Press the queue button, wait for the end of the run, and return its history entry.

        Raises RuntimeError with ComfyUI's message when the run failed, TimeoutError after `timeout` seconds.
        """
        before, deadline = self.page.evaluate(HISTORY), time.monotonic() + timeout
        self.page.locator("[data-testid=queue-button]").first.click()
        while not (new := (runs := self.page.evaluate(HISTORY)).keys() - before.keys()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"A run did not end within {timeout:g} s; ComfyUI's log ends with\n{self._server.log_tail()}")
            self.page.wait_for_timeout(50)  # the page keeps running
        run = runs[new.pop()]
        if failure := dict(run["status"]["messages"]).get("execution_error"):
            raise RuntimeError(f"{failure['node_type']}: {failure['exception_message']}")
        return run

    def _note(self, text: str) -> None:
        if not any(noise in text for noise in CORE_NOISE):
            self.errors.append(text)
