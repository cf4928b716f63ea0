"""The tables of `gpu.py`: everything that was measured, then one table with the answer to each question. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

LENGTHS = (("small", 30), ("medium", 120), ("medium", 380))
VARIANTS = ("small", "medium", "small-base", "medium-base")
GOALS = {("small", 30): (0.05, 0.03), ("medium", 120): (0.2, 0.13), ("medium", 380): (0.6, 0.43)}  # seconds: goal, aim
MEMORY_LIMIT = 6500  # MB, of medium 380 s in fp16
KERNELS_LIMIT = 30  # a layer
SERVER = "ComfyUI server"
SERVERS = {"default": "default flags", "legacy": "without dynamic VRAM"}

RECORDED = "Part 1. Recorded cases: largest relative error on the device, TF32 off"
PRECISION = "Part 1. 16 bits against float32 (TF32 off) on the same device: relative error (cosine), or SNR"
DIFFERENCES = "Part 1. SAME's difference of two attentions, against float32"
RUNS = "Part 2. Sampling, text cached: median of 3 runs after a warm-up"
DRAWS = "Part 2. What a run computes besides its steps, fp16: a draw of noise on the CPU and its copy, conditions, adaLN values of a step"
DECODES = "Part 2. Decode in chunks of 128 frames"
KERNELS = "Part 3. Kernels of one call"
TOPS = "Part 3. The most expensive kernels"
FLOORS = "Part 3. A transformer step over its floor (bare matrix products and attention, without launches)"
MEMORY = "Part 4. Device memory, MB"
LORA = "Part 6. LoRA"
BATCHES = "Part 6. A batch of 8"
TRAINING = "Part 6. Training step of a LoRA"
RESUME = "Part 6. A training run resumed on the device"
SOFTMAXES = "difference of SAME's softmaxes"  # an item
SHORT = {  # rows of PRECISION in the last table
    "embeddings": "text encoder", "text encoder: embeddings": "text encoder", "transformer: one forward": "transformer",
    "SAME: encode": "encode", "SAME: decode of the same latents": "decode", "run, all in 16 bits: sound": "run",
}  # fmt: skip
SHARP = "nearly equal softmaxes, error"
DEVICE = "The device"
NOTES = "Notes"


class Found:
    """The records of a call by item."""

    def __init__(self, records: list[dict]):
        self.rows: dict[str, list[tuple[str, dict]]] = {}
        self.ends: dict[str, dict] = {}
        self.listed: dict[str, int] = {}  # every item that was asked for, and its part
        self.server: list[dict] = []
        for record in records:
            kind = record["kind"]
            if kind == "items":
                self.listed |= record["items"]
            elif kind == "row":
                self.rows.setdefault(record["item"], []).append((record["table"], record["row"]))
            elif kind == "server":
                self.server = (record["found"] or {}).get("rows", [])
            if kind in ("begin", "end", "late"):
                self.listed.setdefault(record["item"], record["part"])
            if kind == "end":
                self.ends[record["item"]] = record

    def state(self, item: str) -> str:
        """Why an item has no complete result, or ""."""
        end = self.ends.get(item)
        if end is None:
            return "NOT REACHED" if item in self.listed else "not asked for"
        if end["error"]:
            return f"FAILED: {end['error']['type']}: {end['error']['message'][:200]}"
        return f"skipped: {end['skipped']}" if end.get("skipped") else ""

    def all(self, item: str, table: str) -> list[dict]:
        return [row for name, row in self.rows.get(item, []) if name == table]

    def one(self, item: str, table: str) -> dict:
        """The first row of a table that an item yielded. Raises LookupError."""
        return self.all(item, table)[0]


@dataclass(frozen=True)
class Question:
    """A row of the last table. items: without them there is no answer. read(found) -> figure, goal or limit, what to compare it with."""

    part: int
    words: str
    items: tuple[str, ...]
    read: Callable[[Found], tuple[str, str, str]]


def questions() -> Iterator[Question]:
    for variant in VARIANTS:
        item = f"recorded cases, {variant}"
        yield Question(1, f"{item}: largest error in fp32", (item,), lambda found, item=item: recorded(found.all(item, RECORDED)))
    for name in ("text encoder", "small", "medium", "demo", "demo-medium"):
        item = f"precision, {name}"
        yield Question(1, f"{item}: fp16 against fp32", (item,), lambda found, item=item: precision(found.all(item, PRECISION)))
    yield Question(
        1, f"{SOFTMAXES}, attention - difference in fp16", (SOFTMAXES,), lambda found: differences(found.all(SOFTMAXES, DIFFERENCES))
    )  # fmt: skip
    for family, seconds in LENGTHS:
        clip = f"{family} {seconds} s"
        for arm in ("eager", "graphed", "compiled"):
            items = f"sampling, {clip}, fp16, {arm}", f"decode, {clip}, fp16"
            if arm != "compiled" or (family, seconds) == LENGTHS[1]:
                yield Question(2, f"{clip}, {arm}: sampling + decode", items, lambda found, clip=clip, arm=arm: whole_run(found, clip, arm))
    for family, seconds in LENGTHS:
        clip = f"{family} {seconds} s"
        items = f"floor, {clip}", f"kernels of a step, {clip}"
        yield Question(3, f"{clip}: step over its floor", items[:1], lambda found, item=items[0]: floor(found.one(item, FLOORS)))
        yield Question(3, f"{clip}: kernels a layer", items[1:], lambda found, item=items[1]: kernels(found.one(item, KERNELS)))
    for clip, limit in (("medium 380 s", f"{MEMORY_LIMIT:,} MB"), ("small 30 s", "")):
        item = f"memory, {clip}, fp16"
        yield Question(4, f"{item}: peak", (item,), lambda found, item=item, limit=limit: memory(found.all(item, MEMORY), limit))
    yield Question(6, "LoRA over a step without", ("LoRA, constant and scheduled",), lora)
    yield Question(6, "batch of 8 over one item", ("batch of 8",), lambda found: batch(found.one("batch of 8", BATCHES)))
    yield Question(6, "training step", ("training step",), training)
    yield Question(6, "resumed training against one without a stop", ("resumed training",), resumed)


# the answers


def recorded(rows: list[dict]) -> tuple[str, str, str]:
    worst = {dtype: max(row[dtype] for row in rows) for dtype in ("fp32", "fp16", "bf16")}
    return f"{worst['fp32']:.1e}", "1e-04", f"fp16 {worst['fp16']:.1e}, bf16 {worst['bf16']:.1e}"


def precision(rows: list[dict]) -> tuple[str, str, str]:
    def all_of(dtype: str) -> str:
        return ", ".join(f"{SHORT[row['']]} {row[dtype].split(' (')[0]}" for row in rows if row[""] in SHORT)

    return all_of("fp16"), "", f"bf16: {all_of('bf16')}"


def differences(rows: list[dict]) -> tuple[str, str, str]:
    def errors(dtype: str) -> str:
        return ", ".join(f"{row['attention in']} - {row['difference in']} {row[SHARP]:.1e}" for row in rows if row["dtype"] == dtype)

    return errors("fp16"), "", f"bf16: {errors('bf16')}"


def seconds_of(found: Found, clip: str, arm: str, by: str) -> tuple[float, float]:
    """Seconds of sampling and of decoding."""
    sampling = f"reference, {clip}" if by == "reference" else f"sampling, {clip}, fp16, {arm}"
    decode = sampling if by == "reference" else f"decode, {clip}, fp16"
    return found.one(sampling, RUNS)["ms"] / 1e3, found.one(decode, DECODES)["ms"] / 1e3


def whole_run(found: Found, clip: str, arm: str) -> tuple[str, str, str]:
    ours = seconds_of(found, clip, arm, "ours")
    try:
        reference = split(seconds_of(found, clip, arm, "reference"))
    except LookupError:
        reference = found.state(f"reference, {clip}")
    goal, aim = next(goals for key, goals in GOALS.items() if clip == "{} {} s".format(*key))
    return split(ours), f"{goal:g} s; aim {aim:g} s", f"reference {reference}"


def split(seconds: tuple[float, float]) -> str:
    return f"{sum(seconds):.3f} s ({seconds[0]:.3f} + {seconds[1]:.3f})"


def floor(row: dict) -> tuple[str, str, str]:
    way = "graph" if "graph ms" in row else "eager"
    return f"{way} {row[f'{way} over floor']:.2f}", "", f"{row[f'{way} ms']:.2f} ms over {row['floor ms']:.2f} ms"


def kernels(row: dict) -> tuple[str, str, str]:
    count = row.get("kernels", row.get("operators"))
    return f"{row['per layer']:.1f}", f"{KERNELS_LIMIT}", f"{count} a step" + (f", {row['kernel ms']:.2f} ms" if "kernel ms" in row else "")


def memory(rows: list[dict], limit: str) -> tuple[str, str, str]:
    whole = [row for row in rows if row["what"].endswith("all weights resident")]
    return f"{max(row['allocated MB'] for row in whole):,.0f} MB", limit, f"reserved {max(row['reserved MB'] for row in whole):,.0f} MB"


def lora(found: Found) -> tuple[str, str, str]:
    rows = found.all("LoRA, constant and scheduled", LORA)
    parts = [
        f"{row['model']}, {row['kind']}: constant {row['step ms, constant'] / row['plain step ms']:.2f}, "
        f"scheduled {row['scheduled over plain']:.2f}, another strength {row['step ms, another state'] / row['plain step ms']:.2f}"
        for row in rows
    ]
    return "; ".join(parts), "", f"without {rows[0]['plain step ms']:.1f} ms, eager"


def batch(row: dict) -> tuple[str, str, str]:
    return f"step {row['step, 8 over 1']:.2f}, sampling {row['sampling, 8 over 1']:.2f}", "8", f"one item {row['sampling ms, 1']:.0f} ms"


def training(found: Found) -> tuple[str, str, str]:
    rows = found.all("training step", TRAINING)
    words = [f"{row['model']}{', checkpointing' * (row['checkpointing'] == 'True')}: {row['ms']:.0f} ms" for row in rows]
    return "; ".join(words), "", "; ".join(f"{row['allocated MB']:,.0f} MB" for row in rows)


def resumed(found: Found) -> tuple[str, str, str]:
    rows = found.all("resumed training", RESUME)
    return "; ".join(row["resumed"] for row in rows), "", "; ".join(f"two whole runs: {row['two whole runs']}" for row in rows)


WORK = ("SA3_Sampler", "SA3_SAMEDecode")


def server_rows(found: Found) -> Iterator[dict]:
    """Loading, first and second run through ComfyUI, compared with `sa3_core` in the same call."""
    for row in found.server:
        words = f"5 ComfyUI, {SERVERS.get(row['server'], row['server'])}{row['model'] and ', '}{row['model']}: {row['item']}"
        runs, said = row["runs"], "; ".join(one[0] for one in row["checks"] if not one[1])
        if row["state"] != "ok" or not runs:
            yield answer(words, f"{row['state'].upper()}: {row['error'] or said}")
            continue
        load, work = runs[0]["nodes"].get("SA3_ModelLoader", 0.0), sum(runs[-1]["nodes"].get(node, 0.0) for node in WORK)
        figure = f"load {load:.2f}, first run {runs[0]['seconds']:.2f}, second {runs[-1]['seconds']:.2f} s"
        arm = "graphed" if row["item"] == "CUDA graphs" else "eager"
        family, seconds = LENGTHS["medium" in row["model"]]
        try:
            core = sum(seconds_of(found, f"{family} {seconds} s", arm, "ours"))
            compared = f"sampling + decode {work:.3f} s, sa3_core {arm} {core:.3f} s, {work - core:+.3f} s"
        except LookupError:
            compared = f"sampling + decode {work:.3f} s"
        yield answer(words, figure, "", compared)


# the tables


def answer(question: str, figure: str, goal: str = "", compared: str = "") -> dict:
    return {"question": question, "figure": figure, "goal or limit": goal, "beside it": compared}


def summary(records: list[dict]) -> list[dict]:
    """One row per question that was asked; a question without an answer says why, and so does any other item that did not end well."""
    found, rows, answered = Found(records), [], set()
    for question in questions():
        if not set(question.items) & set(found.listed):
            continue
        answered |= set(question.items)
        states = [state for item in question.items if (state := found.state(item))]
        words = f"{question.part} {question.words}"
        try:
            rows.append(answer(words, "; ".join(dict.fromkeys(states))) if states else answer(words, *question.read(found)))
        except (LookupError, ValueError) as error:  # an item that ended well without its row
            rows.append(answer(words, f"no figure: {type(error).__name__} {error}"))
    rows += server_rows(found)
    for item, part in found.listed.items():
        if item not in answered and (state := found.state(item)):
            rows.append(answer(f"{part} {item}", state))
    return sorted(rows, key=lambda row: row["question"][0])


def tables(records: list[dict]) -> Iterator[str]:
    """Markdown: the details by table, the server's own words, and the summary last."""
    rows: dict[str, list[dict]] = {}
    for record in records:
        if record["kind"] == "row":
            rows.setdefault(record["table"], []).append(record["row"])
    for title in sorted(rows, key=lambda title: (title == NOTES, title != DEVICE, title)):
        yield f"\n### {title}\n\n{markdown(rows[title])}"
    for record in records:
        if record["kind"] == "server":
            yield f"\n### Part 5. {SERVER}\n\n{record['text']}"
    seconds = [(record["seconds"], record["item"]) for record in records if record["kind"] == "end"]
    slowest = ", ".join(f"{name} {took:.1f} s" for took, name in sorted(seconds, reverse=True)[:8])
    yield f"\n{len(seconds)} items in {sum(took for took, _ in seconds):.0f} s; the longest: {slowest}"
    yield f"\n### Summary\n\n{markdown(summary(records))}"


def markdown(rows: Iterable[dict]) -> str:
    """A table of rows that may have different columns."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *([cell(row.get(name, "")) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", "/").replace("\n", " ")
