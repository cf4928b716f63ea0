"""web/docs: ComfyUI shows <node id>.md as the help of a node."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "web" / "docs"
SECTIONS = ["Inputs", "Outputs", "Example", "Common errors"]


def section(page: str, title: str) -> str:
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def test_each_node_has_its_page_and_no_page_is_left_over(node_classes):
    assert sorted(page.stem for page in DOCS.glob("*.md")) == sorted(node_classes)


def test_pages_say_everything(node_classes):
    for node_id, cls in node_classes.items():
        schema = cls.define_schema()
        page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n"), node_id
        assert re.findall(r"^## (.*)$", page, re.M) == SECTIONS, node_id
        inputs = [one.id for one in schema.inputs if one.get_io_type() != "AUDIO_UI"]
        assert sorted(re.findall(r"\*\*(\w+)\*\*", section(page, "Inputs"))) == sorted(inputs), node_id
        outputs = [one.display_name for one in schema.outputs]
        assert re.findall(r"^\* \*\*(\w+)\*\*", section(page, "Outputs"), re.M) == outputs, node_id


def test_pictures_are_there_and_light():
    shown = {name for page in DOCS.glob("*.md") for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))}
    files = {file.relative_to(DOCS).as_posix(): file for file in DOCS.rglob("*") if file.is_file() and file.suffix != ".md"}
    assert shown == set(files)
    assert all(file.stat().st_size < 40_000 for file in files.values())
