"""Paths of the files that nodes write, and the metadata inside them."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import folder_paths
from comfy.cli_args import args

from ...sa3_core.errors import SA3Error

MAX_DEPTH = 32  # parts of a prefix
MAX_NAME = 180  # bytes; file systems allow 255, with counter and suffix
MAX_VALUE = 100  # bytes of a placeholder's value
UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*]')  # characters that some systems refuse in a name
DEVICE = re.compile(r"^(?=(con|prn|aux|nul|com\d|lpt\d) *(\.|$))", re.IGNORECASE)  # Windows loses what is written to such a name
COMFYUIS = "batch_num|year|month|day|hour|minute|second|width|height"  # placeholders that `next_output` or ComfyUI replaces
TOKEN = re.compile(rf"%({COMFYUIS}|prompt|seed|model|duration|date|date:[^%\n]+|[^%\n]{{1,80}}\.[^%.\n]{{1,80}})%")
DATE = re.compile("yyyy|yy|MM?|dd?|hh?|mm?|ss?")


def expand(prefix: str, record: dict | None, graph: dict | None) -> tuple[str, list[str]]:
    """A prefix with the values of %prompt%, %seed%, %model%, %duration%, %date:yyyy-MM-dd% and %Node.input%, and the unknown ones.

    record: of the item; without a value a placeholder becomes its own name. graph: in API form. Others are kept for ComfyUI.
    """
    values, now, unknown = _values(record or {}), time.localtime(), []

    def value(match: re.Match) -> str:
        word, _, rest = match[1].partition(":")
        if word in values:
            if values[word] is None:
                unknown.append(match[0])
            return word if values[word] is None else _safe(str(values[word]))
        if word == "date":
            return DATE.sub(lambda part: _digits(part[0], now), rest or "yyyy-MM-dd")
        return next(iter(_inputs(graph or {}, *match[1].rpartition(".")[::2])), match[0])

    return TOKEN.sub(value, prefix), unknown


def _values(record: dict) -> dict[str, object]:
    one = {key: record[key][0] if isinstance(record.get(key), list) and len(record[key]) == 1 else None for key in ("prompt", "seconds")}
    seconds = one["seconds"]
    duration = f"{seconds:g}s" if isinstance(seconds, (int, float)) else None
    return {"prompt": one["prompt"], "seed": record.get("seed"), "model": record.get("model"), "duration": duration}


def _digits(part: str, now: time.struct_time) -> str:
    number = {"y": now.tm_year, "M": now.tm_mon, "d": now.tm_mday, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}[part[0]]
    return str(number).zfill(len(part))[-len(part) if part[0] == "y" else 0 :]


def _inputs(graph: dict, name: str, widget: str) -> list[str]:
    """The values of an input of the nodes with this title or type."""
    titles = {key: node["_meta"].get("title") for key, node in graph.items() if isinstance(node.get("_meta"), dict)}
    named = [node for key, node in graph.items() if name and name in (titles.get(key), node.get("class_type"))]
    found = [node.get("inputs", {}).get(widget) for node in named]
    return [_safe(str(one)) for one in found if isinstance(one, (str, int, float))]


def _safe(value: str) -> str:
    """A value as a part of a file name: printable, without folders, at most MAX_VALUE bytes."""
    printable = "".join(character if character.isprintable() else " " for character in value)
    words = " ".join(re.sub(r"[/\\%]", "_", UNSAFE.sub("_", printable)).split())
    return words.encode()[:MAX_VALUE].decode(errors="ignore").strip(" .") or "empty"


def next_output(prefix: str, item: int) -> tuple[Path, str, int, str]:
    """(folder, beginning of the name, first number to try, sub-folder for ComfyUI's /view) of an output file.

    prefix: may name sub-folders of the output folder, nothing outside it. Unsafe characters become _, %batch_num% the item.
    A _ precedes names of devices.
    """
    prefix = UNSAFE.sub("_", _encodable(prefix).replace("%batch_num%", str(item)).replace("\\", "/")).strip()
    parts = prefix.split("/")
    if prefix.startswith("/") or ".." in parts:
        raise SA3Error(f"filename_prefix is '{prefix}', which leads out of the output folder; use a name or sub-folder/name.")
    parts = [DEVICE.sub("_", part.strip(" .")) for part in parts if part.strip(" .")] or ["sa3"]
    parts = [part.encode()[:MAX_NAME].decode(errors="ignore").strip(" .") for part in parts]
    if len(parts) > MAX_DEPTH:
        raise SA3Error(f"filename_prefix names {len(parts) - 1} folders; expected at most {MAX_DEPTH - 1}.")
    output = folder_paths.get_output_directory()
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path("/".join(parts), output)
    except OSError as error:
        raise SA3Error(f"filename_prefix '{prefix[:80]}' cannot be used ({error.strerror}); choose a shorter one.") from error
    return Path(folder), name, counter, subfolder


def _encodable(text: str) -> str:
    """A text without unpaired surrogates, which JSON allows and file systems refuse."""
    return text.encode("utf-8", "replace").decode()


def new_model_file(key: str, name: str) -> Path:
    """Path of a new file or folder in ComfyUI's model folder `key` (loras, checkpoints, ...)."""
    name = name.strip()
    special = name.startswith(".") or "\\" in name or UNSAFE.search(name) or DEVICE.match(name)
    if not name or special or Path(name).name != name or _encodable(name) != name or len(name.encode()) > MAX_NAME:
        raise SA3Error(f"'{_encodable(name)[:80]}' is not a plain file name; use a short one without folders and special characters.")
    return Path(folder_paths.get_folder_paths(key)[0]) / name


def metadata(prompt, extra_pnginfo, run_infos: Sequence[str | None]) -> list[dict[str, str]]:
    """For each record: the graph under ComfyUI's own keys and the record under `sa3`, as texts. Empty under --disable-metadata."""
    if args.disable_metadata:
        return [{} for _ in run_infos]
    graph = {} if prompt is None else {"prompt": json.dumps(prompt)}
    graph |= {key: json.dumps(value) for key, value in (extra_pnginfo or {}).items()}
    return [{**graph, **({"sa3": run_info} if run_info else {})} for run_info in run_infos]
