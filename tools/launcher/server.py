"""A headless ComfyUI in a subprocess, and a client of its HTTP and websocket API.

with Server(comfyui, base_directory, packs=[root]) as server:
    entry = server.wait(server.queue(graph))
    files = server.output_files(entry)
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil

Graph = dict[str, dict[str, Any]]
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without the user's proxy
TERMINAL = ("execution_success", "execution_error", "execution_interrupted")


class ServerFailed(Exception):
    """ComfyUI did not start, or ended; the message contains the last lines of its log."""


class PromptRejected(Exception):
    """ComfyUI refused a graph; the message contains its errors, node by node."""


class ExecutionFailed(Exception):
    """A node raised an error."""

    def __init__(self, node_type: str, message: str) -> None:
        super().__init__(f"{node_type}: {message}")
        self.node_type = node_type
        self.message = message


class Interrupted(Exception):
    """The run was interrupted."""


class Event(NamedTuple):
    """One websocket message about a prompt: `progress`, `executing`, `execution_cached`, ..."""

    kind: str
    data: dict[str, Any]


class Server:
    """A running ComfyUI; a context manager that always stops it.

    comfyui: the tree. base_directory: folder of models, input, output and user settings, created when missing.
    packs: the only node packs to load. models: additional folders with the layout of ComfyUI's `models`.
    frontend: True serves the front end installed with ComfyUI, or the one in the folder that SA3_FRONTEND names; False serves only the
    API and starts faster. log: file for ComfyUI's output.
    """

    def __init__(
        self,
        comfyui: Path,
        base_directory: Path,
        *,
        packs: Sequence[Path] = (),
        models: Sequence[Path] = (),
        python: Path | str = sys.executable,
        cpu: bool = True,
        frontend: bool = False,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        log: Path | None = None,
        start_timeout: float = 180.0,
    ) -> None:
        self.base_directory = base_directory
        self.log = log or base_directory / "comfyui.log"
        self.events: dict[str, list[Event]] = collections.defaultdict(list)
        self.url = ""
        self._tree = comfyui
        self._packs = packs
        self._models = models
        self._python = python
        self._arguments = list(arguments)
        if cpu:
            self._arguments.append("--cpu")
        served = os.environ.get("SA3_FRONTEND") if frontend else base_directory / "no_frontend"
        if served:
            self._arguments += ["--front-end-root", str(served)]
        self._environ = dict(os.environ if environ is None else environ)
        self._start_timeout = start_timeout
        self._client = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    def __enter__(self) -> Server:
        self._loop = asyncio.new_event_loop()
        try:
            self._start()
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._disconnect())
        self._loop.close()
        if self._process is not None:
            stop(self._process)

    # -- API ----------------------------------------------------------------------------------------------------------

    def object_info(self, node: str = "") -> dict[str, Any]:
        """The schemas of all node classes, or of one."""
        return self._get(f"/object_info/{node}" if node else "/object_info")

    def queue(self, graph: Graph) -> str:
        """Queue a graph in API form and return its prompt id. Raises PromptRejected."""
        try:
            return self._post("/prompt", {"prompt": graph, "client_id": self._client})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(rejection(json.load(error))) from None

    def wait(self, prompt_id: str, on_event: Callable[[Event], None] | None = None, timeout: float = 3600.0) -> dict[str, Any]:
        """Wait for the end of a prompt and return its history entry; its events stay in `events[prompt_id]`.

        Raises ExecutionFailed, Interrupted, ServerFailed, or TimeoutError after `timeout` seconds.
        """
        try:
            end = self._loop.run_until_complete(self._follow(prompt_id, on_event, time.monotonic() + timeout))
        except asyncio.TimeoutError:  # another class than TimeoutError in Python 3.10
            raise TimeoutError(f"the prompt did not end within {timeout:g} s") from None
        if end.kind == "execution_error":
            raise ExecutionFailed(end.data["node_type"], end.data["exception_message"].strip())
        if end.kind == "execution_interrupted":
            raise Interrupted(f"interrupted in {end.data['node_type']}")
        return self._until(lambda: self.history(prompt_id), 30.0, "entry in the history")

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a prompt that has ended, else None."""
        return self._get(f"/history/{prompt_id}").get(prompt_id)

    def interrupt(self, prompt_id: str = "") -> None:
        """Interrupt the running prompt, or only this one; may be called from `on_event`."""
        self._post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def running(self, prompt_id: str) -> bool:
        """Whether a prompt is being executed."""
        return any(prompt_id in item for item in self._get("/queue")["queue_running"])

    def free(self) -> None:
        """Make ComfyUI unload all models and clear its cache."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def upload(self, file: Path) -> str:
        """Upload a file to ComfyUI's input folder and return its name for a loader node."""
        return self._loop.run_until_complete(self._upload(file))["name"]

    def cached(self, prompt_id: str) -> set[str]:
        """The ids of the nodes of a prompt that were cached."""
        return {node for event in self.events[prompt_id] if event.kind == "execution_cached" for node in event.data["nodes"]}

    def progress(self, prompt_id: str, node: str) -> list[tuple[int, int]]:
        """The (step, steps) reported by a node of a prompt."""
        reports = (event.data for event in self.events[prompt_id] if event.kind == "progress")
        return [(data["value"], data["max"]) for data in reports if data["node"] == node]

    def output_files(self, entry: dict[str, Any]) -> list[Path]:
        """The files of a history entry in the graph's order, previews included."""
        folders = {"output": self._folder("--output-directory", "output"), "temp": self._folder("--temp-directory", "temp")}
        return [
            folders[file["type"]] / file["subfolder"] / file["filename"]
            for shown in entry["outputs"].values()
            for kind in shown.values()
            for file in kind
            if isinstance(file, dict) and file.get("type") in folders and "filename" in file
        ]

    @property
    def memory(self) -> int:
        """Resident memory of the process in bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    @property
    def handles(self) -> tuple[int, int]:
        """(threads, open files and connections) of the process."""
        process = psutil.Process(self._process.pid)
        return process.num_threads(), process.num_handles() if os.name == "nt" else process.num_fds()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of ComfyUI's log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    # -- process and connection ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        for folder in ("custom_nodes", "models", "input", "output", "no_frontend"):
            (self.base_directory / folder).mkdir(parents=True, exist_ok=True)
        paths = self.base_directory / "extra_model_paths.yaml"
        paths.write_text(as_yaml(search_paths(self._packs, self._models)), encoding="utf-8")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            str(self._python), str(self._tree / "main.py"), "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(self.base_directory), "--database-url", "sqlite:///:memory:",
            "--extra-model-paths-config", str(paths), "--disable-auto-launch", "--disable-api-nodes",
            "--disable-all-custom-nodes", *self._arguments,
        ]  # fmt: skip
        if self._packs:
            command += ["--whitelist-custom-nodes", *(pack.name for pack in self._packs)]
        with self.log.open("wb") as log:
            # A new session: Ctrl-C does not reach ComfyUI, and the whole process group can be ended.
            self._process = subprocess.Popen(
                command, cwd=self._tree, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._until(self._answers, self._start_timeout, "answer")

    def _answers(self) -> bool:
        try:
            return bool(self._get("/system_stats"))
        except OSError:  # refused or reset while it starts
            return False

    def _until(self, condition: Callable[[], Any], timeout: float, what: str) -> Any:
        """Poll `condition` and return its first true value. Raises ServerFailed when the process ends or after `timeout`."""
        deadline = time.monotonic() + timeout
        while not (answer := condition()):
            if self._process.poll() is not None:
                raise ServerFailed(f"ComfyUI ended with status {self._process.returncode}. Its log ends with:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"ComfyUI gave no {what} within {timeout:.0f} s. Its log ends with:\n{self.log_tail()}")
            time.sleep(0.1)
        return answer

    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(f"{self.url}/ws?clientId={self._client}", max_msg_size=0)

    async def _disconnect(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}  # Ctrl-C leaves one pending
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _follow(self, prompt_id: str, on_event: Callable[[Event], None] | None, deadline: float) -> Event:
        """Pass the events of a prompt, stored ones first, to `on_event`; return the one that ends it."""
        seen = 0
        while True:
            for event in self.events[prompt_id][seen:]:
                seen += 1
                if on_event:
                    on_event(event)
                if event.kind in TERMINAL:
                    return event
            message = await self._socket.receive(timeout=max(0.001, deadline - time.monotonic()))
            if message.type is aiohttp.WSMsgType.TEXT:
                self._note(json.loads(message.data))
            elif message.type is not aiohttp.WSMsgType.BINARY:  # previews are binary
                raise ServerFailed(f"ComfyUI closed the connection. Its log ends with:\n{self.log_tail()}")

    def _note(self, message: dict[str, Any]) -> None:
        data = message.get("data") or {}
        if prompt_id := data.get("prompt_id"):
            self.events[prompt_id].append(Event(message["type"], data))

    async def _upload(self, file: Path) -> dict[str, Any]:
        with file.open("rb") as content:
            async with self._session.post(f"{self.url}/upload/image", data={"image": content}) as answer:
                answer.raise_for_status()
                return await answer.json()

    def _folder(self, option: str, name: str) -> Path:
        if option not in self._arguments:
            return self.base_directory / name
        given = Path(self._arguments[self._arguments.index(option) + 1])
        return given / "temp" if name == "temp" else given

    def _get(self, path: str) -> Any:
        with LOCAL.open(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with LOCAL.open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")


def rejection(answer: dict[str, Any]) -> str:
    """ComfyUI's refusal of a graph as text: the errors of each node, else the error of the graph."""
    lines = [
        f"{node['class_type']} (node {node_id}): {error_text(error)}"
        for node_id, node in (answer.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    return "\n".join(lines) or error_text(answer["error"])


def error_text(error: dict[str, Any]) -> str:
    """Message and details of an error."""
    message, details = error["message"].strip(), error["details"].strip()
    return f"{message}{' ' if message.endswith('.') else ': '}{details}" if details else message


def search_paths(packs: Sequence[Path], models: Sequence[Path]) -> dict[str, dict[str, str]]:
    """ComfyUI's extra model paths: the parent folders of the packs, and every folder in the models folders."""
    paths = {f"pack{i}": {"custom_nodes": str(parent)} for i, parent in enumerate(dict.fromkeys(pack.parent for pack in packs))}
    for i, folder in enumerate(models):
        paths[f"models{i}"] = {kind.name: str(kind) for kind in sorted(folder.iterdir()) if kind.is_dir()}
    return paths


def as_yaml(values: dict) -> str:
    """JSON without escapes, which is YAML: as an escape, a character beyond 16 bits would become two."""
    return json.dumps(values, indent=1, ensure_ascii=False)


def free_port() -> int:
    """An unused TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a process and its descendants: terminate, then kill after `patience` seconds."""
    if process.poll() is not None:
        return
    leader = psutil.Process(process.pid)
    family = [leader, *leader.children(recursive=True)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(member)
        _, family = psutil.wait_procs(family, patience)
    process.wait()
