// The editor of one node: its state, and how the widget changes. surface.js draws it; gestures.js and keys.js handle input.

import { ACTIONS } from "./actions.js"
import { cursorFor } from "./drag.js"
import { Gestures } from "./gestures.js"
import { History } from "./history.js"
import { press } from "./keys.js"
import { Player } from "./player.js"
import { RegionError } from "./regions.js"
import { normalized, readSettings, settingsText, writeSettings } from "./settings.js"
import { roundTo, snap } from "./snap.js"
import { Sounds } from "./sounds.js"
import { Surface } from "./surface.js"
import { fill } from "./texts.js"
import { build } from "./toolbar.js"
import { View } from "./view.js"

const QUIET = 300 // milliseconds after the last of several small changes until they are saved

export class WaveformEditor {
  /** model: RegionsModel or ExtensionModel. host: {api, texts, outputs(), capture(), forward(event)}, see waveform_editor.js. */
  constructor(node, model, host) {
    Object.assign(this, { node, model, host, texts: host.texts })
    this.view = new View(0, 10)
    this.regions = []
    Object.assign(this, { draft: null, selected: null, cursor: 0, head: null, over: null })
    Object.assign(this, { error: null, seen: null, notice: "", bounds: [0, 0] })
    this.settings = readSettings(node)
    this.history = null
    this.parts = build(this.texts, model.free, name => this.act(name))
    this.surface = new Surface(this, this.parts)
    this.sounds = new Sounds(this, message => this.showRecording(message))
    this.player = new Player(time => this.movePlayhead(time), () => this.movePlayhead(null))
    this.gestures = new Gestures(this)
    this.watch()
  }

  get element() {
    return this.parts.root
  }

  get focused() {
    return this.element.contains(document.activeElement)
  }

  /** The recording, also while the result of the last run is shown. */
  get clip() {
    return this.sounds.recording?.clip ?? null
  }

  get duration() {
    return this.clip?.duration ?? 0
  }

  /** Whether the mouse and the keys may change the widget. */
  get editable() {
    return Boolean(this.clip) && !this.error && !this.model.linked
  }

  // -- following the graph ------------------------------------------------------------------------------------------

  watch() {
    const { stage, root, inputs } = this.parts
    stage.addEventListener("keydown", event => {
      if (!press(this, event)) return
      event.preventDefault()
      event.stopPropagation()
    })
    for (const name of ["pointerdown", "pointermove", "pointerup"]) {
      root.addEventListener(name, event => (event.button === 1 || event.buttons & 4 ? this.host.forward(event) : event.stopPropagation()))
    }
    for (const [name, input] of Object.entries(inputs)) {
      input.addEventListener("change", () => this.setNumber(name, input))
      input.addEventListener("keydown", event => event.stopPropagation())
    }
  }

  /** Reads changes of the graph since the last call. Cheap when there are none. */
  sync() {
    if (!this.started) return
    this.followSettings()
    this.sounds.follow()
    const { state } = this.model
    const seen = JSON.stringify([state, this.model.before, this.model.linked, this.duration])
    if (seen !== this.seen) {
      this.seen = seen
      this.history ??= new History(state)
      this.history.push(state, "typed")
      this.readModel()
    }
    this.surface.follow()
  }

  /** Called after the values of a loaded or pasted node are set. */
  start() {
    this.started = true
    this.sync()
  }

  readModel() {
    this.error = null
    try {
      const { regions, from, to, low, high } = this.model.read(this.duration)
      this.regions = regions
      this.bounds = [low, high]
      this.view.setLimits(from, to)
    } catch (error) {
      if (!(error instanceof RegionError)) throw error
      this.error = error
    }
    if (this.selected !== null && this.selected >= this.regions.length) this.selected = null
    this.repaint()
  }

  followSettings() {
    const saved = settingsText(this.node)
    if (saved === this.saved) return
    this.saved = saved
    this.settings = readSettings(this.node)
    this.surface.showSettings(this.settings)
    if (this.clip) this.restoreView()
    this.repaint()
  }

  showRecording(message) {
    const { clip, parts, texts } = this
    this.player.stop()
    parts.message.textContent = message
    parts.stage.dataset.state = clip ? "ready" : message === texts.loading ? "loading" : "empty"
    if (clip) {
      this.readModel()
      this.restoreView()
    }
    this.repaint()
  }

  restoreView() {
    if (this.settings.span === null) this.view.fit()
    else this.view.show(this.settings.start ?? this.view.from, this.settings.span)
  }

  remove() {
    this.player.remove()
    this.sounds.stop()
    this.surface.remove()
    this.gestures.remove()
    clearTimeout(this.savingView)
    clearTimeout(this.capturingUndo)
  }

  // -- changing the widget ------------------------------------------------------------------------------------------

  /** Shows regions while the mouse is down, without writing the widget; null discards them. */
  preview(regions, selected = this.selected) {
    this.draft = regions
    if (regions) this.selected = selected
    this.repaint()
  }

  /** Writes the regions of preview(), if any. */
  commitDraft() {
    const { draft, selected } = this
    this.draft = null
    if (draft) this.commit(draft, selected)
    this.repaint()
  }

  /** Writes regions, merged and sorted, and selects the one that covers the middle of regions[selected]. join: see History. */
  commit(regions, selected, join = null) {
    if (!this.editable) return
    const middle = selected === null ? null : (regions[selected][0] + regions[selected][1]) / 2
    this.setState(this.model.stateOf(regions), join)
    if (middle !== null) this.selected = this.regions.findIndex(([start, end]) => middle >= start && middle <= end)
    this.repaint()
  }

  setState(state, join = null) {
    if (state === this.model.state) return
    this.history.push(state, join) // before the widget, whose callback calls sync()
    this.model.state = state
    this.sync()
    clearTimeout(this.capturingUndo)
    if (join === null) this.host.capture()
    else this.capturingUndo = setTimeout(() => this.host.capture(), QUIET)
  }

  restore(state) {
    if (this.model.linked || state === this.model.state) return
    this.model.state = state
    this.sync()
    this.host.capture()
  }

  // -- actions ------------------------------------------------------------------------------------------------------

  act(name) {
    ACTIONS[name](this)
    this.repaint()
  }

  select(index) {
    this.selected = index
    this.repaint()
  }

  setCursor(time, reveal = false) {
    this.cursor = Math.min(Math.max(time, this.view.from), this.view.to)
    if (reveal) this.view.reveal(this.cursor)
    if (this.player.playing) this.playFrom(this.cursor)
    this.repaint()
  }

  /** Plays from `head` to `end`; in a loop, then from `start`. */
  async playFrom(start, end = Infinity, head = start) {
    const { shown } = this.sounds
    if (!shown) return
    const { clip, at } = shown
    const inClip = time => (time < at || time >= at + clip.duration - 0.01 ? 0 : time - at)
    this.played = { start, end }
    this.notice = ""
    try {
      await this.player.play(clip, inClip(start), end - at, this.settings.loop && !clip.coarse, inClip(head))
    } catch {
      this.notice = this.texts.silent
    }
    this.repaint()
  }

  /** Plays the same part again from `head`, with the current settings and sound. */
  resume(head = this.head ?? this.played.start) {
    return this.playFrom(this.played.start, this.played.end, head)
  }

  /** Shows and plays the result of the last run instead of the recording, from the same place; or the recording again. */
  async compare() {
    const { playing } = this.player
    const heard = this.head ?? undefined
    this.player.stop()
    this.notice = ""
    try {
      await this.sounds.compare(!this.sounds.after)
      if (playing) this.resume(heard)
    } catch (error) {
      this.sounds.after = false
      this.notice = fill(this.texts[error.reason] ?? this.texts.unreadable, error)
    }
    this.repaint()
  }

  /** time: of the sound that is played, null at its end. */
  movePlayhead(played) {
    const time = played === null ? null : played + (this.sounds.shown?.at ?? 0)
    this.head = time
    if (time !== null && !this.gestures.drag && (time < this.view.start || time > this.view.end)) {
      this.view.show(time, this.view.span)
      this.repaint()
    }
    this.repaint("marks")
  }

  hover(target) {
    this.parts.stage.style.cursor = target ? cursorFor(target, this.model.free) : ""
    this.over = target?.kind === "edge" ? { region: this.regions[target.index][0], edge: target.edge } : null
    this.repaint("marks")
  }

  /** Where an edge dragged to a time lands. loose: rounded, without beats and zero crossings. */
  snapped(time, loose = false) {
    const perPixel = this.view.span / Math.max(this.surface.width, 1)
    if (loose) return Math.min(Math.max(roundTo(time, perPixel), this.bounds[0]), this.bounds[1])
    return snap(time, this.settings, this.clip, perPixel, ...this.bounds)
  }

  /** what: "marks" redraws only the upper canvas. */
  repaint(what) {
    this.surface.repaint(what)
  }

  // -- settings -----------------------------------------------------------------------------------------------------

  setNumber(name, input) {
    if (input.value !== "") this.settings[name] = normalized(name, Number(input.value))
    this.saveSettings()
    this.repaint()
  }

  saveSettings() {
    writeSettings(this.node, this.settings)
    this.saved = settingsText(this.node)
    this.surface.showSettings(this.settings)
  }

  /** Saves the visible part once scrolling has stopped. */
  saveView() {
    clearTimeout(this.savingView)
    this.savingView = setTimeout(() => {
      const { view, settings } = this
      Object.assign(settings, view.whole ? { start: null, span: null } : { start: view.start, span: view.span })
      this.saveSettings()
    }, QUIET)
  }
}
