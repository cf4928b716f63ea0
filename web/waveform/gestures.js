// The pointer on the canvas: regions are drawn, moved and resized, the overview scrolls, the wheel zooms.

import { dragged, hit } from "./drag.js"

const SLACK = 3 // pixels before a press becomes a drag

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
    // captured at the window: the front end's own listener would zoom the graph
    this.onWheel = event => stage.contains(event.target) && this.wheel(event)
    window.addEventListener("wheel", this.onWheel, { capture: true, passive: false })
  }

  remove() {
    window.removeEventListener("wheel", this.onWheel, { capture: true })
  }

  down(event) {
    if (event.button !== 0) return
    const { editor } = this
    editor.parts.stage.focus({ preventScroll: true })
    const [x, y] = editor.surface.point(event)
    const target = hit(editor, editor.surface, x, y)
    editor.parts.stage.setPointerCapture(event.pointerId)
    this.drag = { ...target, x, from: editor.regions.map(region => [...region]), moved: false }
    if (target.kind === "overview") return this.scrollTo(target.time)
    if (target.index !== undefined && editor.model.free) editor.select(target.index)
  }

  move(event) {
    const { editor, drag } = this
    const { width } = editor.surface
    const [x, y] = editor.surface.point(event)
    if (!drag) return editor.hover(hit(editor, editor.surface, x, y))
    if (drag.kind === "overview") return this.scrollTo(editor.view.from + (x / width) * editor.view.length)
    if (!drag.moved && Math.abs(x - drag.x) < SLACK) return
    drag.moved = true
    const outside = x < 0 ? x : Math.max(x - width, 0)
    if (outside) editor.view.scroll((outside / width) * editor.view.span * 0.2)
    const snapped = time => editor.snapped(time, event.altKey)
    if (editor.editable) editor.preview(...dragged(drag, editor.view.toTime(x, width), editor.model, editor.bounds, snapped))
  }

  up(event) {
    const { editor, drag } = this
    this.drag = null
    if (!drag || drag.kind === "overview") return editor.saveView()
    if (!drag.moved) return this.press(drag)
    editor.commitDraft()
  }

  cancel() {
    this.drag = null
    this.editor.preview(null)
  }

  /** A press without a drag sets the cursor; outside every region it also clears the selection. */
  press({ kind, time }) {
    if (kind === "empty" && this.editor.model.free) this.editor.select(null)
    this.editor.setCursor(time)
  }

  double(event) {
    const { editor } = this
    const target = hit(editor, editor.surface, ...editor.surface.point(event))
    if (target.kind === "overview") editor.act("fit")
    else if (editor.model.free && target.index !== undefined) editor.act("playRegion")
    else editor.playFrom(target.time)
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
    const { view } = editor
    const { width } = editor.surface
    const [x] = editor.surface.point(event)
    const { deltaX, deltaY, deltaMode, shiftKey } = event
    const pixels = deltaMode === 1 ? 30 : 1 // a line, or a pixel
    if (shiftKey) view.scroll(((deltaX || deltaY) * pixels * view.span) / width)
    else if (Math.abs(deltaX) > Math.abs(deltaY)) view.scroll((deltaX * pixels * view.span) / width)
    else view.zoom(1.0018 ** (deltaY * pixels), view.toTime(x, width))
    editor.repaint()
    editor.saveView()
  }
}
