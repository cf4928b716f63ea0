// Editing without a page: dragging, nudging, keys, undo, settings, and what the widgets hold.

import assert from "node:assert/strict"
import { test } from "node:test"
import { elastic } from "../../web/height.js"
import { ACTIONS, nudge, selectNext } from "../../web/waveform/actions.js"
import { cursorFor, dragged, hit } from "../../web/waveform/drag.js"
import { History } from "../../web/waveform/history.js"
import { press } from "../../web/waveform/keys.js"
import { ExtensionModel, RegionsModel } from "../../web/waveform/models.js"
import { DEFAULTS, normalized, readSettings, settingsText, writeSettings } from "../../web/waveform/settings.js"
import { View } from "../../web/waveform/view.js"

const CANVAS = { width: 1000, height: 200 } // 100 pixels a second in the view of `scene`
const FREE = { free: true, shortest: 0.01 }
const AFTER = { free: false, before: false, edge: 1, shortest: 0.1 }
const BEFORE = { free: false, before: true, edge: 0, shortest: 0.1 }

/** What hit() and the actions read of an editor, and `sent`, what was committed. */
function scene(model, regions, more = {}) {
  const sent = []
  return {
    view: new View(0, 10), model, regions, selected: null, cursor: 0, bounds: [0, 10], editable: true, settings: { ...DEFAULTS }, sent,
    commit: (...values) => sent.push(values),
    select(index) {
      this.selected = index
    },
    setCursor(time) {
      this.cursor = time
    },
    snapped: time => time,
    saveView() {},
    saveSettings() {},
    ...more,
  }
}

test("what a point lies on", () => {
  const editor = scene(FREE, [[1, 2], [4, 6]])
  const kinds = x => {
    const { kind, index, edge } = hit(editor, CANVAS, x, 60)
    return [kind, index, edge].filter(value => value !== undefined)
  }
  assert.deepEqual(kinds(50), ["empty"])
  assert.deepEqual(kinds(150), ["region", 0])
  assert.deepEqual(kinds(94), ["edge", 0, 0])
  assert.deepEqual(kinds(93), ["empty"])
  assert.deepEqual(kinds(606), ["edge", 1, 1])
  assert.equal(hit(editor, CANVAS, 150, 60).time, 1.5)
})

test("the overview shows the whole time line at any zoom", () => {
  const editor = scene(FREE, [])
  editor.view.show(4, 1)
  assert.deepEqual(hit(editor, CANVAS, 500, 190), { kind: "overview", time: 5 })
})

test("where edges meet, the selected region's edge is hit; in a tiny region, that of the pointer's half", () => {
  const editor = scene(FREE, [[1, 2], [2, 3]], { selected: 1 })
  assert.deepEqual([hit(editor, CANVAS, 200, 60).index, hit(editor, CANVAS, 200, 60).edge], [1, 0])
  const tiny = scene(FREE, [[1, 1.04]])
  assert.deepEqual([100, 101, 103, 105].map(x => hit(tiny, CANVAS, x, 60).edge), [0, 0, 1, 1])
})

test("only the free edge of a continuation is hit", () => {
  assert.deepEqual([200, 400].map(x => hit(scene(AFTER, [[2, 4]]), CANVAS, x, 60).kind), ["region", "edge"])
  assert.deepEqual([200, 400].map(x => hit(scene(BEFORE, [[2, 4]]), CANVAS, x, 60).kind), ["edge", "region"])
})

test("cursors", () => {
  assert.deepEqual(["edge", "region", "overview", "empty"].map(kind => cursorFor({ kind }, true)), ["ew-resize", "grab", "pointer", "text"])
  assert.equal(cursorFor({ kind: "region" }, false), "text")
})

/** dragged() from what lies at one time to another. */
function drag(model, regions, from, to, snapped = time => time) {
  const target = hit(scene(model, regions), CANVAS, from * 100, 60)
  const before = structuredClone(regions)
  const result = dragged({ ...target, from: regions }, to, model, [0, 10], snapped)
  assert.deepEqual(regions, before, "the regions at the start of the drag do not change")
  return result
}

test("dragging on empty ground draws a region in either direction", () => {
  assert.deepEqual(drag(FREE, [[1, 2]], 3, 5), [[[1, 2], [3, 5]], 1])
  assert.deepEqual(drag(FREE, [], 5, 3), [[[3, 5]], 0])
  assert.deepEqual(drag(FREE, [], 3, 3.005), [[], null])
  assert.deepEqual(drag(FREE, [], 3.2, 4.7, Math.round), [[[3, 5]], 0])
  assert.deepEqual(drag(AFTER, [[2, 4]], 6, 8), [[[2, 4]], null])
})

test("dragging a region moves it, its length kept, up to the bounds", () => {
  assert.deepEqual(drag(FREE, [[1, 3]], 2, 4), [[[3, 5]], 0])
  assert.deepEqual(drag(FREE, [[1, 3]], 2, -4), [[[0, 2]], 0])
  assert.deepEqual(drag(FREE, [[1, 3]], 2, 40), [[[8, 10]], 0])
  assert.deepEqual(drag(AFTER, [[2, 4]], 3, 5), [[[2, 4]], null])
})

test("dragging an edge resizes down to the shortest region, never through the other edge", () => {
  assert.deepEqual(drag(FREE, [[1, 3]], 3, 5), [[[1, 5]], 0])
  assert.deepEqual(drag(FREE, [[1, 3]], 3, 0), [[[1, 1.01]], 0])
  assert.deepEqual(drag(FREE, [[1, 3]], 1, 9), [[[2.99, 3]], 0])
  assert.deepEqual(drag(BEFORE, [[2, 4]], 2, 1), [[[1, 4]], 0])
})

test("nudging a region stops before its neighbours and the bounds", () => {
  const nudged = (selected, step, whole) => {
    const editor = scene(FREE, [[1, 2], [3, 4]], { selected })
    nudge(editor, step, whole)
    return editor.sent[0]?.[0]
  }
  assert.deepEqual(nudged(0, 0.5, true), [[1.5, 2.5], [3, 4]])
  assert.deepEqual(nudged(0, 5, true), [[1.999999, 2.999999], [3, 4]])
  assert.deepEqual(nudged(0, -5, true), [[0, 1], [3, 4]])
  assert.deepEqual(nudged(1, 50, true), [[1, 2], [9, 10]])
  assert.deepEqual(nudged(1, -5, true), [[1, 2], [2.000001, 3.000001]])
  assert.deepEqual(nudged(0, 0.5, false), [[1, 2.5], [3, 4]])
  assert.deepEqual(nudged(0, 5, false), [[1, 2.999999], [3, 4]])
  assert.equal(nudged(0, -1, false), undefined, "no region without length")
})

test("nudging a continuation changes its length; nothing happens while nothing may change", () => {
  for (const [model, wanted] of [[AFTER, [[2, 4.5]]], [BEFORE, [[1.5, 4]]]]) {
    const editor = scene(model, [[2, 4]])
    nudge(editor, 0.5, false)
    assert.deepEqual(editor.sent[0].slice(0, 2), [wanted, null])
  }
  const locked = scene(FREE, [[1, 2]], { selected: 0, editable: false })
  nudge(locked, 0.5, true)
  assert.deepEqual(locked.sent, [])
})

test("adding and removing regions", () => {
  const editor = scene(FREE, [[1, 2]], { cursor: 5 })
  ACTIONS.add(editor)
  assert.deepEqual(editor.sent.pop(), [[[1, 2], [5, 5.5]], 1])
  Object.assign(editor.settings, { beats: true, bpm: 60 })
  ACTIONS.add(editor)
  assert.deepEqual(editor.sent.pop(), [[[1, 2], [5, 6]], 1])
  editor.cursor = 10
  ACTIONS.add(editor)
  ACTIONS.remove(editor)
  assert.deepEqual(editor.sent, [], "no room, none selected")
  editor.selected = 0
  ACTIONS.remove(editor)
  assert.deepEqual([editor.sent.pop(), editor.selected], [[[], null], null])
})

test("selecting the next and previous region wraps around", () => {
  const editor = scene(FREE, [[1, 2], [3, 4], [5, 6]])
  const chosen = [1, 1, 1, 1, -1].map(step => (selectNext(editor, step), editor.selected))
  assert.deepEqual(chosen, [0, 1, 2, 0, 2])
  assert.equal(editor.cursor, 5)
  editor.selected = null
  selectNext(editor, -1)
  assert.equal(editor.selected, 2)
})

test("keys: the ones listed run, all others stay with the graph", () => {
  const acts = []
  const editor = scene(FREE, [[1, 2]], { act: name => acts.push(name) })
  const key = (name, modifiers = {}) => press(editor, { key: name, ...modifiers })
  for (const name of [" ", "Delete", "+", "0", "H", "?"]) assert.ok(key(name), name)
  assert.ok(key(" ", { shiftKey: true }) && key("z", { ctrlKey: true }) && key("Z", { metaKey: true, shiftKey: true }))
  assert.deepEqual(acts, ["play", "remove", "zoomIn", "fit", "help", "help", "playRegion", "undo", "redo"])
  for (const name of ["x", "F5", "Tab"]) assert.ok(!key(name), name)
  assert.ok(!key("c", { ctrlKey: true }) && !key("z", { ctrlKey: true, altKey: true }))
})

test("arrow keys move the cursor, the selected region or its end; Shift ten times as far", () => {
  const editor = scene(FREE, [[1, 2]], { cursor: 5 })
  press(editor, { key: "ArrowRight" })
  press(editor, { key: "ArrowRight", shiftKey: true })
  assert.ok(Math.abs(editor.cursor - 5.11) < 1e-9)
  editor.selected = 0
  press(editor, { key: "ArrowLeft" })
  press(editor, { key: "ArrowRight", altKey: true })
  assert.deepEqual(editor.sent.map(([regions]) => regions[0]), [[0.99, 1.99], [1, 2.01]])
})

test("undo and redo; joined states are one step, equal states none", () => {
  const history = new History("a")
  for (const [state, join] of [["b"], ["c", "x"], ["d", "x"], ["d"], ["e", "y"]]) history.push(state, join)
  const path = [history.undo(), history.undo(), history.redo(), history.undo(), history.undo(), history.undo()]
  assert.deepEqual(path, ["d", "b", "d", "b", "a", "a"])
  history.push("f")
  assert.deepEqual([history.state, history.canRedo, history.canUndo], ["f", false, true])
})

test("a state after undo is a step of its own, and the oldest go first", () => {
  const history = new History(0, 3)
  history.push(1, "x")
  history.undo()
  history.push(2, "x")
  assert.equal(history.undo(), 0)
  for (let state = 10; state < 20; state++) history.push(state)
  assert.deepEqual([history.undo(), history.undo(), history.undo()], [18, 17, 17])
})

test("a node grows with its text and shrinks to the height that the user gave it", () => {
  const heightOf = elastic()
  assert.deepEqual([heightOf(200, 180), heightOf(200, 250.5), heightOf(251, 220), heightOf(220, 180)], [200, 251, 220, 200])
  assert.equal(heightOf(200, 250), 250)
  assert.deepEqual([heightOf(400, 250), heightOf(400, 180)], [400, 400], "resized by hand")
})

test("settings: only what differs from the defaults is saved", () => {
  const node = { properties: { other: 1 } }
  const settings = readSettings(node)
  assert.deepEqual(settings, DEFAULTS)
  writeSettings(node, { ...settings, bpm: 90, span: 2 })
  assert.deepEqual(node.properties.sa3_waveform, { bpm: 90, span: 2 })
  assert.deepEqual(readSettings(node), { ...DEFAULTS, bpm: 90, span: 2 })
  assert.equal(settingsText(node), '{"bpm":90,"span":2}')
  writeSettings(node, DEFAULTS)
  assert.deepEqual(node.properties, { other: 1 })
  assert.equal(settingsText(node), "null")
})

test("settings of a foreign workflow are checked", () => {
  const read = saved => readSettings({ properties: { sa3_waveform: saved } })
  assert.deepEqual(read({ beats: "yes", bpm: "90", first: null, start: {}, other: 1 }), DEFAULTS)
  assert.deepEqual([read({ bpm: 0 }).bpm, read({ bpm: 1e9 }).bpm], [20, 400])
  assert.deepEqual([read({ first: 1e17 }).first, read({ first: -1e17 }).first, read({ start: Infinity }).start], [600, 0, null])
  assert.deepEqual([read({ bar: 2.5 }).bar, normalized("bar", 2.5), normalized("bar", 99), normalized("first", 0.25)], [3, 3, 16, 0.25])
  assert.deepEqual(read("text"), DEFAULTS)
  assert.deepEqual(readSettings({}), DEFAULTS)
})

function nodeWith(values, options = {}) {
  return { inputs: [], widgets: Object.entries(values).map(([name, value]) => ({ name, value, options: options[name] ?? {} })) }
}

test("the regions widget as regions and back", () => {
  const node = nodeWith({ regions: "0:02-3, 1-1.5" })
  const model = new RegionsModel(node)
  assert.deepEqual(model.read(4), { regions: [[1, 1.5], [2, 3]], from: 0, to: 4, low: 0, high: 4 })
  assert.deepEqual([model.read(0).to, model.read(0).high], [3, 3])
  assert.equal(model.stateOf([[2, 3], [1, 2]]), "1-3")
  node.widgets[0].value = ""
  assert.deepEqual(model.read(0), { regions: [], from: 0, to: 10, low: 0, high: 0 })
  node.widgets[0].value = "x"
  assert.throws(() => model.read(4), { reason: "unreadable" })
})

test("writing the state calls the callback of a widget that has no element", () => {
  const node = nodeWith({ regions: "" })
  const called = []
  Object.assign(node.widgets[0], { callback: value => called.push(value) })
  const model = new RegionsModel(node)
  model.state = "1-2"
  node.widgets[0].element = {}
  model.state = "3-4"
  assert.deepEqual([called, model.state], [["1-2"], "3-4"])
  node.inputs.push({ name: "regions", link: 7 })
  assert.ok(model.linked)
})

test("the seconds of a continuation as a region after or before the recording", () => {
  const node = nodeWith({ seconds: 2, side: "after" }, { seconds: { min: 0.5, max: 60 } })
  const model = new ExtensionModel(node)
  assert.deepEqual(model.read(4), { regions: [[4, 6]], from: 0, to: 8, low: 4, high: 64 })
  assert.deepEqual([model.edge, model.shortest], [1, 0.5])
  node.widgets[1].value = "before"
  assert.deepEqual(model.read(4), { regions: [[-2, 0]], from: -4, to: 4, low: -60, high: 0 })
  assert.equal(model.edge, 0)
  assert.equal(model.stateOf([[4, 6.12345]]), 2.123)
  node.widgets[0].value = 59
  assert.equal(model.read(4).from, -60)
})
