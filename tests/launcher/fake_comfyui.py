"""A fake of ComfyUI's main.py: the same API, and nodes that behave as their class names say.

Say: reports three steps and writes a file. Boom: raises. Wait: runs until interrupted. Die: ends the process.
Bad: is refused. /object_info returns the server's arguments.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp import web

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--base-directory", type=Path)
parser.add_argument("--output-directory", type=Path)
parser.add_argument("--extra-model-paths-config", type=Path)
parser.add_argument("--die-at-start", action="store_true")
args, _ = parser.parse_known_args()
if args.die_at_start:
    sys.exit("the fake has no torch")
output = args.output_directory or args.base_directory / "output"
history, sockets, tasks = {}, {}, set()
interrupted = asyncio.Event()


async def websocket(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    sockets[request.query["clientId"]] = socket
    await socket.send_json({"type": "status", "data": {"sid": ""}})
    async for _ in socket:
        pass
    return socket


async def prompt(request):
    body = await request.json()
    if bad := [node_id for node_id, node in body["prompt"].items() if node["class_type"] == "Bad"]:
        errors = [{"message": "Value -1 smaller than min of 0", "details": "seconds"}]
        node_errors = {bad[0]: {"errors": errors, "class_type": "Bad", "dependent_outputs": []}}
        error = {"message": "Prompt outputs failed validation", "details": ""}
        return web.json_response({"error": error, "node_errors": node_errors}, status=400)
    prompt_id = f"prompt-{len(tasks)}"
    tasks.add(asyncio.create_task(execute(prompt_id, body["prompt"], sockets[body["client_id"]])))
    return web.json_response({"prompt_id": prompt_id})


async def execute(prompt_id, graph, socket):
    async def send(kind, **data):
        await socket.send_json({"type": kind, "data": {"prompt_id": prompt_id, **data}})

    await send("execution_start")
    await send("execution_cached", nodes=["cached"])
    outputs = {}
    for node_id, node in graph.items():
        kind = node["class_type"]
        await send("executing", node=node_id)
        if kind == "Boom":
            return await send("execution_error", node_type=kind, exception_message="seconds must be positive, got -1\n")
        if kind == "Die":
            print("the fake is dying", flush=True)
            os._exit(3)
        if kind == "Wait":
            await send("progress", node=node_id, value=1, max=2)
            await interrupted.wait()
            return await send("execution_interrupted", node_type=kind)
        for step in (1, 2, 3):
            await socket.send_bytes(b"a preview")
            await send("progress", node=node_id, value=step, max=3)
        (output / "audio").mkdir(parents=True, exist_ok=True)
        (output / "audio" / "a_00001_.flac").write_text(json.dumps(node["inputs"]))
        outputs[node_id] = {"audio": [{"filename": "a_00001_.flac", "subfolder": "audio", "type": "output"}], "text": ["x"]}
    await send("execution_success")
    history[prompt_id] = {"outputs": outputs, "requests": 0}


async def get_history(request):
    entry = history.get(request.match_info["id"])
    if entry is None or not (requests := entry["requests"]):
        history.setdefault(request.match_info["id"], {"outputs": {}})["requests"] = 1  # the first request comes too early
        return web.json_response({})
    return web.json_response({request.match_info["id"]: {**entry, "requests": requests}})


async def interrupt(_):
    interrupted.set()
    return web.Response()


async def started_with(_):
    paths = json.loads(args.extra_model_paths_config.read_text())
    return web.json_response({"arguments": sys.argv[1:], "paths": paths, "HF_HOME": os.environ.get("HF_HOME")})


async def upload(request):
    form = await request.post()
    return web.json_response({"name": form["image"].filename})


async def stats(_):
    return web.json_response({"system": {}})


app = web.Application()
app.add_routes([
    web.get("/ws", websocket), web.get("/history/{id}", get_history), web.get("/system_stats", stats),
    web.get("/object_info", started_with), web.post("/prompt", prompt), web.post("/interrupt", interrupt),
    web.post("/upload/image", upload),
])  # fmt: skip
web.run_app(app, host="127.0.0.1", port=args.port, print=None)
