"""Positions for the nodes of a graph: columns from left to right, with links that do not run behind other nodes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 1400, 750  # of the whole graph, in graph units
TITLE = 30  # height of a title bar, above a node's position
COLUMN_GAP, ROW_GAP = 44, 20
SLOT = 20  # distance of a node's sockets
INSET = 4  # by how much a box is smaller for the test whether a link crosses it
TURNS, ROUNDS = 9, 6000  # of the search
TOP, SPREAD, BOTTOM = range(3)  # how the nodes of a column lie in the height of the graph


class Size(NamedTuple):
    """Width, and height with the title bar as the tallest renderer draws it."""

    width: float
    height: float


class Link(NamedTuple):
    """From an output to an input: node and number of the socket."""

    source: str
    output: int
    target: str
    input: int


class Box(NamedTuple):
    """A node with its title bar."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Columns:
    """Nodes by column from top to bottom, and how each column is aligned."""

    nodes: list[list[str]]
    align: list[int]

    def boxes(self, sizes: dict[str, Size]) -> dict[str, Box]:
        heights = [sum(sizes[key].height + ROW_GAP for key in column) - ROW_GAP for column in self.nodes]
        boxes, x = {}, 0.0
        for column, height, align in zip(self.nodes, heights, self.align, strict=True):
            rest = max(heights) - height
            y = rest if align == BOTTOM else 0.0
            gap = ROW_GAP + (rest // (len(column) - 1) if align == SPREAD and len(column) > 1 else 0)
            for key in column:
                boxes[key] = Box(x, y, *sizes[key])
                y += sizes[key].height + gap
            x += max((sizes[key].width for key in column), default=-COLUMN_GAP) + COLUMN_GAP
        return boxes

    def changed(self, rng: random.Random, fixed: Sequence[str]) -> Columns:
        """A copy with a node in another place, or a column aligned otherwise. The first column keeps the fixed nodes at its top."""
        nodes, align = [list(column) for column in self.nodes], list(self.align)
        if rng.random() < 0.15:
            i = rng.randrange(len(align))
            align[i] = rng.choice((TOP, SPREAD) if fixed and i == 0 else (TOP, SPREAD, BOTTOM))
            return Columns(nodes, align)
        places = [(c, r) for c, column in enumerate(nodes) for r in range(len(fixed) if c == 0 else 0, len(column))]
        c, r = rng.choice(places)
        if rng.random() < 0.4:
            d, s = rng.choice(places)
            nodes[c][r], nodes[d][s] = nodes[d][s], nodes[c][r]
        else:
            key, column = nodes[c].pop(r), rng.randrange(len(nodes))
            nodes[column].insert(rng.randint(len(fixed) if column == 0 else 0, len(nodes[column])), key)
        return Columns(nodes, align)


def ends(link: Link, boxes: dict[str, Box]) -> tuple[float, float, float, float]:
    """Where a link begins and ends: x, y, x, y."""
    source, target = boxes[link.source], boxes[link.target]
    y0, y1 = (min(TITLE + SLOT * (number + 0.7), box.height - TITLE / 2) for number, box in ((link.output, source), (link.input, target)))
    return source.x + source.width, source.y + y0, target.x, target.y + y1


def crosses(line: tuple[float, float, float, float], box: Box) -> bool:
    """Whether a line from left to right passes through a box."""
    x0, y0, x1, y1 = line if line[0] <= line[2] else (*line[2:], *line[:2])
    left, right = max(x0, box.x + INSET), min(x1, box.x + box.width - INSET)
    if left >= right:
        return False
    slope = (y1 - y0) / (x1 - x0)
    a, b = y0 + (left - x0) * slope, y0 + (right - x0) * slope
    return max(a, b) > box.y + INSET and min(a, b) < box.y + box.height - INSET


def crossed(links: Sequence[Link], boxes: dict[str, Box]) -> list[tuple[Link, str]]:
    """Links, each with a third node behind which it runs."""
    found = []
    for link in links:
        line = ends(link, boxes)
        found += [(link, key) for key, box in boxes.items() if key not in (link.source, link.target) and crosses(line, box)]
    return found


def _cost(columns: Columns, sizes: dict[str, Size], links: Sequence[Link]) -> float:
    boxes = columns.boxes(sizes)
    width = max(box.x + box.width for box in boxes.values())
    height = max(box.y + box.height for box in boxes.values())
    cost = 20 * max(0.0, width - WIDTH) + 20 * max(0.0, height - HEIGHT) + 0.2 * (width + height) + 300 * len(crossed(links, boxes))
    place = {key: (c, r) for c, column in enumerate(columns.nodes) for r, key in enumerate(column)}
    for link in links:
        x0, y0, x1, y1 = ends(link, boxes)
        (c0, r0), (c1, r1) = place[link.source], place[link.target]
        if c0 == c1:
            cost += 150 if r1 == r0 + 1 else 1000 if r1 > r0 else 4000
        elif c0 > c1:
            cost += 4000
        cost += 0.1 * abs(x1 - x0) + 0.3 * abs(y1 - y0)
    return cost


def lay_out(sizes: dict[str, Size], links: Sequence[Link], first: Sequence[str] = ()) -> dict[str, Box]:
    """A box for each node, the same for the same graph. first: nodes at the top of the first column."""
    rng = random.Random(0)
    best, least = None, float("inf")
    others = [key for key in sizes if key not in first]
    depth = dict.fromkeys(others, 0)
    for _ in others:
        for link in links:
            depth[link.target] = max(depth[link.target], depth[link.source] + 1)
    for turn in range(TURNS):
        count = max(1, min(len(others), (4, 3, 4, 5)[turn % 4]))
        columns = Columns([[] for _ in range(count)], [TOP] * count)
        columns.nodes[0] += first
        for key in others:
            columns.nodes[depth[key] * count // (1 + max(depth.values()))].append(key)
        cost = _cost(columns, sizes, links)
        for i in range(ROUNDS):
            other = columns.changed(rng, first)
            change = _cost(other, sizes, links) - cost
            if change <= 0 or rng.random() < 2.718 ** (-change / (300 * (1 - i / ROUNDS) + 1)):
                columns, cost = other, cost + change
            if cost < least:
                best, least = columns, cost
    return best.boxes(sizes)
