"""Run a workflow in a headless ComfyUI and return its audio file. Runs under the environment's Python."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from .environment import SetupError, child_environ
from .server import Event, Graph, Server

# option of run.py -> (class of node, its input)
INPUTS = {
    "prompt": ("SA3_TextEncode", "text"),
    "duration": ("SA3_EmptyLatent", "seconds"),
    "seed": ("SA3_Sampler", "seed"),
    "steps": ("SA3_Sampler", "steps"),
    "model": ("SA3_ModelLoader", "model"),
}
AUDIO = {".flac", ".wav", ".mp3", ".opus", ".ogg"}


def read_graph(file: Path) -> Graph:
    """Read a workflow in API form."""
    try:
        graph = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"The workflow {file} cannot be read: {error}") from None
    nodes = graph.values() if isinstance(graph, dict) else []
    if not nodes or not all(map(is_node, nodes)):
        raise SetupError(f"{file} is not a workflow in API form; export it from ComfyUI with Workflow > Export (API).")
    return graph


def is_node(value: object) -> bool:
    """Whether a value has the form of a node in an API graph."""
    if not isinstance(value, dict) or not isinstance(value.get("class_type"), str):
        return False
    return all(isinstance(value.get(key, {}), dict) for key in ("inputs", "_meta"))


def fill(graph: Graph, options: dict[str, object]) -> Graph:
    """A copy of the graph with options set on all nodes of their class (INPUTS); None = unchanged."""
    filled = {node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in graph.items()}
    for option, value in options.items():
        if value is None:
            continue
        node_class, name = INPUTS[option]
        nodes = [node for node in filled.values() if node["class_type"] == node_class]
        if not nodes:
            raise SetupError(f"The workflow has no {node_class} node, so {option} cannot be set.")
        for node in nodes:
            node["inputs"][name] = value
    return filled


class Progress:
    """Prints the running node and its steps, a line each. Called with events."""

    def __init__(self, graph: Graph, stream=None) -> None:
        self._titles = {node_id: node.get("_meta", {}).get("title") or node["class_type"] for node_id, node in graph.items()}
        self._stream = stream or sys.stderr

    def __call__(self, event: Event) -> None:
        if event.kind == "executing" and event.data["node"] in self._titles:
            self.say(self._titles[event.data["node"]])
        elif event.kind == "progress":
            self.say(f"{self._titles.get(event.data['node'], '')}: step {event.data['value']}/{event.data['max']}")

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"[run] {text}", file=self._stream, flush=True)


def run(root: Path, options: Namespace) -> Path:
    """Run the workflow and return its audio file. Raises SetupError or one of server.py's errors."""
    graph = fill(read_graph(options.workflow), {name: getattr(options, name) for name in INPUTS})
    progress = Progress(graph)
    tree, home = Path(options.inside), root / ".run" / "home"
    private = tree == root / ".run" / "comfyui"
    output = options.output or root / "output"
    output.mkdir(parents=True, exist_ok=True)
    for kind in ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras"):
        (home / "models" / kind).mkdir(parents=True, exist_ok=True)

    progress.say(f"starting ComfyUI ({tree})")
    server = Server(
        tree,
        home,
        packs=[root],
        models=[] if private else [tree / "models"],
        cpu=options.cpu,
        arguments=["--output-directory", str(output)],
        environ=child_environ(root, private),
    )
    with server:
        entry = server.wait(server.queue(graph), progress)
        files = [file for file in server.output_files(entry) if file.suffix in AUDIO and file.is_file()]
    if not files:
        raise SetupError(f"The workflow {options.workflow} saved no audio file; expected one of {', '.join(sorted(AUDIO))}.")
    saved = [file for file in files if file.resolve().is_relative_to(output.resolve())]
    if not saved:
        progress.say("the workflow saved nothing: this is a preview, which the next run deletes")
    return (saved or files)[-1]
