"""A small part of benchmarks/load.py: three clients at once; impossible and interrupted prompts and copies among the others."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.launcher.server import Server

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import load


def test_three_clients_at_once(comfy: Server):
    load.furnish(comfy.base_directory)
    work = load.jobs(14, seed=794)
    assert any(job.refusal for job in work) and sum(job.repeats is not None for job in work) >= 2 and len({job.name for job in work}) >= 6
    report = load.drive(comfy, work)
    assert len(report.jobs) == len(work) and not report.failures
    assert sum(job.interrupted for job in report.jobs) == 2
    threads, handles = (max(look[i] for look in report.looks[7:]) - max(look[i] for look in report.looks[:7]) for i in (1, 2))
    assert threads <= 2 and handles <= 4
    assert load.differing(comfy, report, 2) == []


def test_a_report_notices_what_must_not_be():
    good, other = load.Job(0, "a", {}, digest="1"), load.Job(1, "b", {}, "word", error="another")
    copy, broken = load.Job(2, "a", {}, repeats=0, digest="2"), load.Job(3, "c", {}, error="x")
    hit, late = load.Job(4, "d", {}, interrupted=True), load.Job(5, "e", {}, interrupt_after=3, interrupted=True)
    looks = [(int(1e9 + i * 2e6), 20 + (i > 70) * 5, 40) for i in range(80)]
    report = load.Report([good, other, copy, broken, hit, late], looks)
    assert len(report.failures) == 4 and abs(report.slope - 2) < 1e-6 and report.growth == (5, 0)
