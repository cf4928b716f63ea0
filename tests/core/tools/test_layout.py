"""Positions of nodes: from left to right, nothing overlaps, and a link behind a node is detected."""

import itertools

from tools.docs.layout import HEIGHT, WIDTH, Box, Link, Size, crossed, lay_out

SIZES = {key: Size(280, 160 + 40 * i) for i, key in enumerate("abcdef")}
LINKS = [Link(source, 0, target, 0) for source, target in itertools.pairwise("abcdef")] + [Link("a", 1, "e", 1)]


def test_a_graph_flows_from_left_to_right_in_its_frame():
    boxes = lay_out(SIZES, LINKS)
    assert set(boxes) == set(SIZES) and all((box.width, box.height) == SIZES[key] for key, box in boxes.items())
    assert all(boxes[link.source].x <= boxes[link.target].x for link in LINKS)
    assert max(box.x + box.width for box in boxes.values()) <= WIDTH and max(box.y + box.height for box in boxes.values()) <= HEIGHT
    for one, other in itertools.combinations(boxes.values(), 2):
        apart = one.x + one.width < other.x or other.x + other.width < one.x
        assert apart or one.y + one.height < other.y or other.y + other.height < one.y
    assert crossed(LINKS, boxes) == [] and lay_out(SIZES, LINKS) == boxes


def test_the_first_nodes_stay_at_the_top_left():
    assert lay_out({**SIZES, "note": Size(280, 200)}, LINKS, ["note"])["note"][:2] == (0, 0)


def test_a_link_behind_a_third_node_is_found():
    boxes = {"a": Box(0, 0, 100, 100), "b": Box(200, 0, 100, 100), "c": Box(400, 0, 100, 100)}
    assert crossed([Link("a", 0, "c", 0)], boxes) == [(Link("a", 0, "c", 0), "b")]
    assert crossed([Link("a", 0, "c", 0)], {**boxes, "b": Box(200, 60, 100, 100)}) == []
    assert crossed([Link("a", 0, "b", 0), Link("b", 0, "c", 0)], boxes) == []
