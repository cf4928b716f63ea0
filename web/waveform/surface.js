// Redraws the two canvases, and updates the words and buttons around them.

import { paintMarks, paintSignal } from "./paint.js"
import { fill } from "./texts.js"
import { themeOf } from "./theme.js"
import { relabel } from "./toolbar.js"
import { clockText } from "./view.js"

const FRAME = 4096 / 44100 // seconds of a latent frame

export class Surface {
  /** editor: what is shown. parts: the elements of toolbar.js. */
  constructor(editor, parts) {
    Object.assign(this, { editor, parts, frame: null, stale: "all", pixels: 0, theme: null })
    this.resizing = new ResizeObserver(() => this.repaint())
    this.resizing.observe(parts.stage)
  }

  get width() {
    return this.parts.stage.clientWidth
  }

  get height() {
    return this.parts.stage.clientHeight
  }

  /** The position of a pointer event on the canvas, in CSS pixels before the zoom of the graph. */
  point({ clientX, clientY }) {
    const box = this.parts.stage.getBoundingClientRect()
    return [((clientX - box.left) / box.width) * this.width, ((clientY - box.top) / box.height) * this.height]
  }

  /** Draws in the next frame. what: "all", or "marks" for only the upper canvas. */
  repaint(what = "all") {
    if (what === "all" || this.stale === "none") this.stale = what
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null
      this.paint()
    })
  }

  /** Redraws when the colour theme or the zoom of the graph has changed. */
  follow() {
    if (this.theme !== themeOf(this.parts.stage) || this.pixels !== this.devicePixels()) this.repaint()
  }

  remove() {
    this.resizing.disconnect()
    cancelAnimationFrame(this.frame)
  }

  paint() {
    const { editor, width, height, parts } = this
    if (!width || !height) return
    const [signal, marks] = parts.canvases
    this.theme = themeOf(parts.stage)
    parts.root.dataset.theme = this.theme.name
    this.fit(signal, marks)
    const { view } = editor
    const regions = editor.draft ?? editor.regions
    const origin = Math.min(regions[0]?.[0] ?? 0, 0)
    const { clip, tiles, at } = editor.sounds.shown ?? { clip: null }
    const scene = { view, clip, tiles, at, theme: this.theme, width, height, pixels: this.pixels, origin }
    if (this.stale === "all") paintSignal(signal.getContext("2d"), scene)
    this.stale = "none"
    paintMarks(marks.getContext("2d"), scene, this.marks(regions))
    this.describe()
  }

  marks(regions) {
    const { clip, model, selected, error, cursor, head, settings, over } = this.editor
    return {
      regions,
      selected: model.free ? selected : 0,
      faded: Boolean(error) || !clip,
      edge: model.free ? null : model.edge,
      cursor: clip ? cursor : null,
      head,
      grid: settings.beats ? settings : null,
      hover: over,
    }
  }

  /** Sizes the canvases to the screen's resolution. */
  fit(...canvases) {
    const pixels = this.devicePixels()
    const rows = Math.round((pixels / this.width) * this.height)
    for (const canvas of canvases) {
      if (canvas.width !== pixels || canvas.height !== rows) {
        Object.assign(canvas, { width: pixels, height: rows })
        this.stale = "all"
      }
      canvas.getContext("2d").setTransform(pixels / this.width, 0, 0, rows / this.height, 0, 0)
    }
    this.pixels = pixels
  }

  /** Device pixels across the canvas at the graph's zoom, in steps of 0.5 so that zooming rarely redraws. */
  devicePixels() {
    const { stage } = this.parts
    const zoom = stage.getBoundingClientRect().width / Math.max(stage.offsetWidth, 1)
    return Math.round(Math.min(Math.max(Math.ceil(zoom * devicePixelRatio * 2) / 2, 1), 3) * stage.clientWidth)
  }

  /** Shows the settings in the toolbar. */
  showSettings(settings) {
    const { inputs, buttons, grid } = this.parts
    for (const name of ["beats", "zero", "loop"]) buttons[name].setAttribute("aria-pressed", settings[name])
    for (const [name, input] of Object.entries(inputs)) input.value = settings[name]
    grid.hidden = !settings.beats
  }

  /** Updates the words and buttons around the canvas. */
  describe() {
    const { editor, parts } = this
    const { model, texts, history, clip, selected, player } = editor
    const { buttons, hint, stage } = parts
    relabel(buttons.play, player.playing ? "stop" : "play", player.playing ? texts.stop : texts.play)
    buttons.play.disabled = !clip
    buttons.after.hidden = !editor.sounds.resultFile
    buttons.after.setAttribute("aria-pressed", editor.sounds.after)
    buttons.undo.disabled = !history?.canUndo || model.linked
    buttons.redo.disabled = !history?.canRedo || model.linked
    if (model.free) buttons.playRegion.disabled = selected === null || !clip
    if (model.free) buttons.remove.disabled = selected === null || !editor.editable
    const [text, bad] = this.words()
    if (hint.textContent !== text) hint.textContent = text
    hint.classList.toggle("sa3w-bad", bad)
    const label = fill(texts.stage, { length: clockText(editor.duration), count: editor.regions.length })
    if (stage.getAttribute("aria-label") !== label) stage.setAttribute("aria-label", label)
  }

  /** [the hint below the canvas, whether it is a warning]. */
  words() {
    const { texts, error, notice, model, clip, duration, draft, regions, selected } = this.editor
    if (error) return [fill(texts[`bad_${error.reason}`], error), true]
    if (notice) return [notice, true]
    if (model.linked) return [texts.linked, false]
    const region = model.free ? (draft ?? regions)[selected] : draft?.[0]
    if (region) return [this.lengths(region), false]
    const beyond = clip && model.free && regions.at(-1)?.[1] > duration + 0.05
    if (beyond) return [fill(texts.beyond, { length: clockText(duration) }), true]
    if (clip?.coarse) return [texts.coarse, false]
    return [model.free ? texts.hintRegions : texts.hintExtension, false]
  }

  lengths([start, end]) {
    const origin = Math.min(start, 0)
    const text = `${clockText(start - origin)} – ${clockText(end - origin)} · ${(end - start).toFixed(3)} s`
    return end - start < FRAME ? `${text} · ${this.editor.texts.short}` : text
  }
}
