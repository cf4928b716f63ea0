// Draws the canvases: below, the waveform, spectrogram, ruler and overview; above, the regions, beats and cursors.

import { lanesOf, OVERVIEW, RULER } from "./lanes.js"
import { extremes } from "./peaks.js"
import { barLabels, beatLines, clockText, tickStep } from "./view.js"

const FONT = "10px system-ui, sans-serif"

/**
 * The lower canvas. scene: {view, clip, tiles, at, theme, origin, width, height, pixels}.
 * at: the time of the clip's first sample. origin: the time that the ruler labels 0. pixels: device pixels across.
 */
export function paintSignal(context, scene) {
  const { view, clip, tiles, at, theme, width, height, pixels } = scene
  const lanes = lanesOf(height)
  context.clearRect(0, 0, width, height)
  fill(context, theme.ground, 0, 0, width, height)
  paintRuler(context, scene)
  fill(context, theme.spectrum, 0, lanes.spectrum[0], width, lanes.spectrum[1])
  if (!clip) return
  const seen = view.shifted(at)
  const inside = fromTo(seen, width, 0, clip.duration)
  for (const [top, tall] of [lanes.wave, lanes.spectrum]) {
    hatch(context, theme, 0, top, inside[0], tall)
    hatch(context, theme, inside[1], top, width - inside[1], tall)
  }
  tiles.draw(context, seen, width, ...lanes.spectrum, pixels)
  outline(context, scene, seen, ...lanes.wave, width)
  const whole = { start: seen.from, span: view.length }
  fill(context, theme.ruler, 0, lanes.overview[0], width, OVERVIEW)
  outline(context, scene, whole, ...lanes.overview, width)
}

function paintRuler(context, { view, theme, origin, width }) {
  fill(context, theme.ruler, 0, 0, width, RULER)
  const step = tickStep((view.span / width) * 64)
  context.font = FONT
  context.textBaseline = "middle"
  context.fillStyle = theme.text
  for (let k = Math.max(Math.ceil((view.start - origin) / step - 1e-6), 0); origin + k * step <= view.end; k++) {
    const x = Math.round(view.toX(origin + k * step, width))
    fill(context, theme.line, x, RULER - 5, 1, 5)
    context.fillStyle = theme.text
    context.fillText(clockText(k * step, step), x + 3, RULER / 2)
  }
}

/** The waveform from minimum to maximum, the RMS inside it. seen: {start, span} in seconds. */
function outline(context, { clip, theme, pixels, width: whole }, seen, top, height, width) {
  const device = pixels / whole // device pixels per CSS pixel
  const gain = (0.94 * (height / 2)) / Math.max(clip.peaks.peak, 0.02)
  const middle = top + height / 2
  const perColumn = ((seen.span / width) * clip.rate) / device
  fill(context, theme.line, 0, Math.round(middle), width, 1 / device)
  if (perColumn < 1) return curve(context, clip, theme, seen, middle, gain, width)
  for (const [colour, part] of [[theme.outline, "peak"], [theme.body, "rms"]]) {
    context.fillStyle = colour
    for (let column = 0; column < width * device; column++) {
      const from = (seen.start + (column / device / width) * seen.span) * clip.rate
      const { min, max, rms } = extremes(clip, from, from + perColumn)
      if (min > max) continue
      const high = middle - gain * (part === "peak" ? max : Math.min(rms, Math.max(max, 0)))
      const low = middle - gain * (part === "peak" ? min : Math.max(-rms, Math.min(min, 0)))
      context.fillRect(column / device, high, 1 / device, Math.max(low - high, 1 / device))
    }
  }
}

function curve(context, { samples, rate }, theme, seen, middle, gain, width) {
  context.strokeStyle = theme.body
  context.lineWidth = 1.25
  context.beginPath()
  const last = Math.min(Math.ceil((seen.start + seen.span) * rate) + 1, samples.length)
  for (let n = Math.max(Math.floor(seen.start * rate), 0); n < last; n++) {
    context.lineTo(((n / rate - seen.start) / seen.span) * width, middle - gain * samples[n])
  }
  context.stroke()
}

/**
 * The upper canvas. marks: {regions, selected, faded, edge, cursor, head, grid, hover}.
 * edge: the only edge that can be dragged, null for all. grid: {bpm, first, bar} or null. hover: {region: its start, edge} or null.
 */
export function paintMarks(context, scene, marks) {
  const { view, theme, width, height } = scene
  const lanes = lanesOf(height)
  const bottom = lanes.spectrum[0] + lanes.spectrum[1]
  context.clearRect(0, 0, width, height)
  for (const x of beatLines(view, width, marks.grid)) fill(context, theme.beat, x, RULER, 1, bottom - RULER)
  paintBars(context, scene, barLabels(view, width, marks.grid))
  context.globalAlpha = marks.faded ? 0.4 : 1
  marks.regions.forEach((region, i) => paintRegion(context, scene, region, i === marks.selected, marks, bottom, lanes.wave))
  context.globalAlpha = 1
  if (marks.cursor !== null) cursor(context, theme, view.toX(marks.cursor, width), bottom, false)
  if (marks.head !== null) cursor(context, theme, view.toX(marks.head, width), bottom, true)
  paintOverview(context, scene, marks, lanes.overview[0])
}

/** Below the ruler's seconds: bars and beats. */
function paintBars(context, { theme }, labels) {
  context.font = FONT
  context.textBaseline = "middle"
  for (const [x, text] of labels) {
    fill(context, theme.text, x, RULER, 1, 4)
    context.fillText(text, x + 3, RULER + 8)
  }
}

function paintRegion(context, { view, theme, width, origin }, [start, end], selected, { edge, hover }, bottom, lane) {
  const [left, right] = fromTo(view, width, start, end)
  if (right < 0 || left > width) return
  fill(context, selected ? theme.selectedFill : theme.regionFill, left, RULER, right - left, bottom - RULER)
  fill(context, theme.region, left, 2, Math.max(right - left, 2), RULER - 3)
  label(context, theme, Math.max(left, 0), Math.min(right, width), [
    `${clockText(start - origin)} – ${clockText(end - origin)}`,
    `${Number((end - start).toFixed(3))} s`,
  ])
  const lit = hover?.region === start ? hover.edge : null
  ;[left, right].forEach((x, side) => {
    const movable = edge === null || edge === side
    const wide = movable && (selected || lit === side) ? 3 : 1.5
    fill(context, theme.region, x - wide / 2, RULER - 1, wide, bottom - RULER + 1)
    if (movable) grip(context, theme, x, lane[0] + lane[1] / 2)
  })
}

/** The first of the texts that fits. */
function label(context, theme, left, right, texts) {
  context.font = FONT
  context.textBaseline = "middle"
  const text = texts.find(one => context.measureText(one).width + 10 < right - left)
  context.fillStyle = theme.regionText
  if (text) context.fillText(text, left + 5, RULER / 2 + 0.5)
}

function grip(context, theme, x, y) {
  context.fillStyle = theme.region
  context.beginPath()
  context.roundRect(x - 3.5, y - 10, 7, 20, 3.5)
  context.fill()
  fill(context, theme.regionText, x - 0.5, y - 5, 1, 10)
}

function cursor(context, theme, x, bottom, playing) {
  fill(context, theme.cursor, x - (playing ? 0.75 : 0.5), playing ? 0 : RULER - 6, playing ? 1.5 : 1, bottom)
  if (playing) return
  context.fillStyle = theme.cursor
  context.beginPath()
  context.moveTo(x - 4, RULER - 7)
  context.lineTo(x + 4, RULER - 7)
  context.lineTo(x, RULER - 1)
  context.fill()
}

function paintOverview(context, { view, theme, width }, { regions, head }, top) {
  const whole = { toX: time => ((time - view.from) / view.length) * width }
  for (const [start, end] of regions) {
    const left = whole.toX(start)
    fill(context, theme.region, left, top + OVERVIEW - 4, Math.max(whole.toX(end) - left, 2), 4)
  }
  if (head !== null) fill(context, theme.cursor, whole.toX(head), top, 1, OVERVIEW)
  if (view.whole) return
  const [left, right] = [whole.toX(view.start), whole.toX(view.end)]
  fill(context, theme.shade, 0, top, left, OVERVIEW)
  fill(context, theme.shade, right, top, width - right, OVERVIEW)
  context.strokeStyle = theme.body
  context.lineWidth = 1
  context.strokeRect(left + 0.5, top + 0.5, Math.max(right - left - 1, 2), OVERVIEW - 1)
}

function hatch(context, theme, left, top, width, height) {
  if (width <= 0) return
  context.save()
  context.beginPath()
  context.rect(left, top, width, height)
  context.clip()
  fill(context, theme.empty, left, top, width, height)
  context.strokeStyle = theme.beat
  context.lineWidth = 1
  context.beginPath()
  for (let x = Math.floor((left - height) / 8) * 8; x < left + width; x += 8) {
    context.moveTo(x, top + height)
    context.lineTo(x + height, top)
  }
  context.stroke()
  context.restore()
}

function fromTo(view, width, start, end) {
  return [Math.max(view.toX(start, width), -9), Math.min(view.toX(end, width), width + 9)]
}

function fill(context, colour, x, y, width, height) {
  context.fillStyle = colour
  context.fillRect(x, y, width, height)
}
