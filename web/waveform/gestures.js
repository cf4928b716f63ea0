// The mouse on the picture: making, moving and resizing regions, scrolling by the overview.

import { lanesOf } from "./paint.js"

const REACH = 6 // pixels around an edge
const SLACK = 3 // pixels before a press becomes a drag

/** What lies under a point: {kind: "overview" | "edge" | "region" | "empty", region, edge, time}. */
export function hit(editor, x, y) {
  const { view, regions, model } = editor
  const { width, height } = editor.surface
  const time = view.toTime(x, width)
  if (y >= lanesOf(height).overview[0]) return { kind: "overview", time: view.from + (x / width) * view.length }
  const edges = regions.flatMap((region, index) => region.map((at, edge) => ({ index, edge, away: Math.abs(view.toX(at, width) - x) })))
  const near = edges
    .filter(({ edge, away }) => away <= REACH && (model.free || edge === model.edge))
    .sort((a, b) => a.away - b.away || (a.index === editor.selected ? -1 : 1))[0]
  if (near) {
    const inner = regions[near.index].some((at, edge) => edge !== near.edge && Math.abs(view.toX(at, width) - x) <= REACH)
    const edge = inner && model.free ? Number(x >= view.toX((regions[near.index][0] + regions[near.index][1]) / 2, width)) : near.edge
    return { kind: "edge", index: near.index, edge, time }
  }
  const index = regions.findIndex(([start, end]) => time >= start && time <= end)
  return index >= 0 ? { kind: "region", index, time } : { kind: "empty", time }
}

export function cursorFor({ kind }, free) {
  if (kind === "edge") return "ew-resize"
  if (kind === "region") return free ? "grab" : "text"
  return kind === "overview" ? "pointer" : "text"
}

export class Gestures {
  constructor(editor) {
    this.editor = editor
    this.drag = null
    const { stage } = editor.parts
    const on = (name, act) => stage.addEventListener(name, act.bind(this))
    on("pointerdown", this.down)
    on("pointermove", this.move)
    on("pointerup", this.up)
    on("pointercancel", this.cancel)
    on("pointerleave", () => editor.hover(null))
    on("dblclick", this.double)
    // at the window, before the front end takes what it holds for a gesture on the graph
    this.turn = event => stage.contains(event.target) && this.wheel(event)
    window.addEventListener("wheel", this.turn, { capture: true, passive: false })
  }

  remove() {
    window.removeEventListener("wheel", this.turn, { capture: true })
  }

  down(event) {
    if (event.button !== 0) return
    const { editor } = this
    editor.parts.stage.focus({ preventScroll: true })
    const [x, y] = editor.surface.point(event)
    const target = hit(editor, x, y)
    editor.parts.stage.setPointerCapture(event.pointerId)
    this.drag = { ...target, x, from: editor.regions.map(region => [...region]), moved: false }
    if (target.kind === "overview") return this.scrollTo(target.time)
    if (target.index !== undefined && editor.model.free) editor.select(target.index)
  }

  move(event) {
    const { editor, drag } = this
    const [x, y] = editor.surface.point(event)
    if (!drag) return editor.hover(hit(editor, x, y))
    if (drag.kind === "overview") return this.scrollTo(editor.view.from + (x / editor.surface.width) * editor.view.length)
    if (!drag.moved && Math.abs(x - drag.x) < SLACK) return
    drag.moved = true
    if (x < 0 || x > editor.surface.width) editor.view.scroll(((x < 0 ? x : x - editor.surface.width) / editor.surface.width) * editor.view.span * 0.2)
    if (editor.editable) editor.preview(...this.dragged(editor.view.toTime(x, editor.surface.width), event.altKey))
  }

  up(event) {
    const { editor, drag } = this
    this.drag = null
    if (!drag || drag.kind === "overview") return editor.keepView()
    if (!drag.moved) return this.press(drag, event)
    editor.drop()
  }

  cancel() {
    this.drag = null
    this.editor.preview(null)
  }

  /** A press that was no drag sets the cursor, and lets go of the region beside it. */
  press({ kind, time }) {
    if (kind === "empty" && this.editor.model.free) this.editor.select(null)
    this.editor.setCursor(time)
  }

  double(event) {
    const { editor } = this
    const target = hit(editor, ...editor.surface.point(event))
    if (target.kind === "overview") editor.act("fit")
    else if (editor.model.free && target.index !== undefined) editor.act("playRegion")
    else editor.playFrom(target.time)
  }

  /** [regions, index]: how the regions lie when the pointer is at a time. */
  dragged(time, loose) {
    const { editor, drag } = this
    const at = seconds => editor.snapped(seconds, loose)
    const regions = drag.from.map(region => [...region])
    if (drag.kind === "empty" || (drag.kind === "region" && !editor.model.free)) {
      if (!editor.model.free) return [regions, null]
      const [start, end] = [at(drag.time), at(time)].sort((a, b) => a - b)
      return end - start < editor.model.shortest ? [regions, null] : [[...regions, [start, end]], regions.length]
    }
    const region = regions[drag.index]
    if (drag.kind === "region") {
      const length = region[1] - region[0]
      const [low, high] = editor.bounds
      const start = Math.min(Math.max(at(region[0] + time - drag.time), low), high - length)
      regions[drag.index] = [start, start + length]
    } else {
      const other = region[1 - drag.edge]
      const least = editor.model.shortest
      region[drag.edge] = drag.edge ? Math.max(at(time), other + least) : Math.min(at(time), other - least)
    }
    return [regions, drag.index]
  }

  scrollTo(time) {
    const { view } = this.editor
    view.show(time - view.span / 2, view.span)
    this.editor.repaint()
  }

  wheel(event) {
    const { editor } = this
    if (event.ctrlKey || event.metaKey || !editor.focused) return editor.host.forward(event)
    event.preventDefault()
    event.stopPropagation()
    const [x] = editor.surface.point(event)
    const unit = event.deltaMode === 1 ? 30 : 1 // lines or pixels
    const across = event.shiftKey ? event.deltaX || event.deltaY : event.deltaX
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) editor.view.scroll((across * unit * editor.view.span) / editor.surface.width)
    else editor.view.zoom(1.0018 ** (event.deltaY * unit), editor.view.toTime(x, editor.surface.width))
    editor.repaint()
    editor.keepView()
  }
}
