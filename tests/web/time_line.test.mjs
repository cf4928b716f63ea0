// Times on the canvas: the view, the ruler, beats, snapping.

import assert from "node:assert/strict"
import { test } from "node:test"
import { lanesOf } from "../../web/waveform/lanes.js"
import { nearestBeat, nearestZero, roundTo, snap } from "../../web/waveform/snap.js"
import { barLabels, beatLines, clockText, tickStep, View } from "../../web/waveform/view.js"
import { near, random, RATE, sine } from "./shared.mjs"

test("a view begins with the whole time line and follows its ends until it is zoomed", () => {
  const view = new View(0, 10)
  assert.deepEqual([view.start, view.end, view.whole], [0, 10, true])
  view.setLimits(-2, 20)
  assert.deepEqual([view.start, view.end], [-2, 20])
  view.show(3, 4)
  view.setLimits(0, 30)
  assert.deepEqual([view.start, view.end, view.whole], [3, 7, false])
  view.setLimits(0, 5)
  assert.deepEqual([view.start, view.end], [1, 5])
  view.fit()
  assert.deepEqual([view.start, view.end], [0, 5])
})

test("zooming keeps the time under the pointer", () => {
  const view = new View(0, 100)
  view.zoom(0.5, 50)
  assert.deepEqual([view.start, view.end], [25, 75])
  const x = view.toX(30, 800)
  view.zoom(0.1, 30)
  near(view.toX(30, 800), x)
  view.zoom(1e-9, 30)
  assert.equal(view.span, 0.002)
  view.zoom(1e9, 30)
  assert.ok(view.whole)
})

test("scrolling and showing stay inside the ends", () => {
  const view = new View(0, 10)
  view.show(2, 4)
  view.scroll(-5)
  assert.deepEqual([view.start, view.end], [0, 4])
  view.scroll(50)
  assert.deepEqual([view.start, view.end], [6, 10])
  view.show(-3, 99)
  assert.ok(view.whole)
})

test("revealing scrolls only to what is outside", () => {
  const view = new View(0, 100)
  view.show(40, 10)
  view.reveal(45)
  assert.equal(view.start, 40)
  view.reveal(60)
  near(view.toX(60, 1), 0.9)
  view.reveal(20)
  near(view.toX(20, 1), 0.1)
  view.reveal(0)
  assert.equal(view.start, 0)
})

test("times and positions are inverse", () => {
  const next = random(3)
  const view = new View(-5, 60)
  for (let round = 0; round < 100; round++) {
    view.show(-5 + 60 * next(), 0.01 + 60 * next())
    const x = 640 * next()
    near(view.toX(view.toTime(x, 640), 640), x, 1e-6)
  }
})

test("ticks are round numbers, not closer than asked and not much wider", () => {
  const cases = [[0.0003, 0.0005], [0.001, 0.001], [0.11, 0.2], [0.3, 0.5], [1, 1], [7, 10], [11, 20], [25, 30], [31, 60], [61, 120], [3000, 3600], [8000, 10800]]
  for (const [asked, step] of cases) near(tickStep(asked), step, 1e-12)
  for (let asked = 0.001; asked < 1e4; asked *= 1.07) assert.ok(tickStep(asked) >= asked * (1 - 1e-9) && tickStep(asked) <= asked * 3.0001, `${asked}`)
})

test("clock texts", () => {
  const cases = [[0, 1, "0:00"], [65, 1, "1:05"], [65.25, 0.05, "1:05.25"], [59.9996, 0.001, "1:00.000"], [-1.5, 0.1, "-0:01.5"], [-0.0001, 0.1, "0:00.0"], [3725, 60, "62:05"]]
  for (const [seconds, step, text] of cases) assert.equal(clockText(seconds, step), text)
  assert.equal(clockText(1), "0:01.000")
})

test("beat lines lie on the beats of the view, thinned where they would touch", () => {
  const view = new View(0, 4)
  assert.deepEqual(beatLines(view, 400, null), [])
  assert.deepEqual(beatLines(view, 400, { bpm: 60, first: 0.5 }), [50, 150, 250, 350])
  view.setLimits(0, 400)
  const lines = beatLines(view, 400, { bpm: 60, first: 0 })
  assert.deepEqual(lines.slice(0, 3), [0, 8, 16])
  view.show(2.2, 1)
  assert.deepEqual(beatLines(view, 100, { bpm: 60, first: 0 }), [80])
})

test("the nearest beat", () => {
  near(nearestBeat(1.1, 120), 1)
  near(nearestBeat(1.1, 120, 0.2), 1.2)
  near(nearestBeat(-0.6, 60, 0.25), -0.75)
})

test("the nearest zero crossing within reach", () => {
  const tone = sine(1000, 50000)
  near(nearestZero(tone, RATE, 0.10012), 0.1, 1 / RATE)
  assert.equal(nearestZero(new Float32Array(9000).fill(1), RATE, 0.1), null)
  assert.equal(nearestZero(Float32Array.of(1, 1, 1, -1, -1), 1, 0, 5), 3)
  assert.equal(nearestZero(Float32Array.of(1, 1, 1, -1, -1), 1, 0, 2), null)
  assert.equal(nearestZero(Float32Array.of(1, 1, 1, 0, 1), 1, 0, 5), 3)
})

test("rounding follows the zoom, from 10 ms to 1 us", () => {
  assert.deepEqual([1, 0.01, 0.0004, 1e-9].map(perPixel => roundTo(1.23456789, perPixel)), [1.23, 1.23, 1.2346, 1.234568])
})

test("snapping: beats replace rounding, zero crossings follow, the bounds come last", () => {
  const off = { beats: false, zero: false, bpm: 120, first: 0 }
  const clip = { samples: sine(1000, 50000), rate: RATE }
  assert.equal(snap(1.23456, off, clip, 0.01, 0, 9), 1.23)
  assert.equal(snap(1.1, { ...off, beats: true }, null, 0.01, 0, 9), 1)
  near(snap(0.5002, { ...off, beats: true, zero: true }, clip, 0.01, 0, 9), 0.5, 1.01 / RATE)
  assert.equal(snap(8.9, { ...off, beats: true }, clip, 0.01, 0, 8.2), 8.2)
  assert.equal(snap(-1, off, clip, 0.01, 0, 9), 0)
})

test("the lanes fill the canvas without overlap", () => {
  for (const height of [150, 270, 333, 801]) {
    const { ruler, wave, spectrum, overview } = lanesOf(height)
    const lanes = [ruler, wave, spectrum, overview]
    lanes.slice(1).forEach(([top], i) => assert.equal(top - (lanes[i][0] + lanes[i][1]), 1))
    assert.equal(overview[0] + overview[1], height)
  }
})

test("labels of bars and beats, never closer than 40 pixels", () => {
  const grid = { bpm: 120, first: 0.25, bar: 4 }
  const view = new View(0, 4)
  assert.deepEqual(barLabels(view, 400, grid), [[25, "1.1"], [75, "1.2"], [125, "1.3"], [175, "1.4"], [225, "2.1"], [275, "2.2"], [325, "2.3"], [375, "2.4"]])
  assert.deepEqual(barLabels(view, 100, grid), [[6, "1"], [56, "2"]])
  assert.deepEqual(barLabels(new View(0, 60), 300, { ...grid, first: 0 }).map(([, text]) => text), ["1", "5", "9", "13", "17", "21", "25", "29"])
  assert.equal(barLabels(new View(-1, 1), 400, { ...grid, first: 0 })[0][1], "0.3", "before bar 1")
  assert.deepEqual(barLabels(view, 400, null), [])
})

test("a view of a sound that starts earlier or later", () => {
  const view = new View(-2, 6)
  view.show(1, 2)
  const { from, to, start, span } = view.shifted(-2)
  assert.deepEqual([from, to, start, span], [0, 8, 3, 2])
})
