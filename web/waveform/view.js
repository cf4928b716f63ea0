// The visible part of a time line, in seconds, and what is marked on it.

const SHORTEST = 0.002 // seconds across the canvas at the highest zoom

export class View {
  constructor(from = 0, to = 1) {
    this.setLimits(from, to)
    this.fit()
  }

  get end() {
    return this.start + this.span
  }

  get length() {
    return this.to - this.from
  }

  get whole() {
    return this.span >= this.length - 1e-9
  }

  /** The time line's ends. A partial view keeps its place as far as it lies inside. */
  setLimits(from, to) {
    const whole = this.from === undefined || this.whole
    this.from = from
    this.to = Math.max(to, from + SHORTEST)
    if (whole) this.fit()
    else this.show(this.start, this.span)
  }

  fit() {
    this.start = this.from
    this.span = this.length
  }

  show(start, span) {
    this.span = Math.min(Math.max(span, SHORTEST), this.length)
    this.start = Math.min(Math.max(start, this.from), this.to - this.span)
  }

  /** A factor below 1 zooms in. The time `at` keeps its place on the canvas. */
  zoom(factor, at) {
    const span = Math.min(Math.max(this.span * factor, SHORTEST), this.length)
    this.show(at - ((at - this.start) / this.span) * span, span)
  }

  scroll(seconds) {
    this.show(this.start + seconds, this.span)
  }

  /** Scrolls a time that is outside the view to a tenth from the nearer side. */
  reveal(time) {
    if (time < this.start) this.show(time - 0.1 * this.span, this.span)
    else if (time > this.end) this.show(time - 0.9 * this.span, this.span)
  }

  /** The same part of a time line whose 0 is this many seconds later. */
  shifted(seconds) {
    return Object.assign(new View(), { from: this.from - seconds, to: this.to - seconds, start: this.start - seconds, span: this.span })
  }

  toX(time, width) {
    return ((time - this.start) / this.span) * width
  }

  toTime(x, width) {
    return this.start + (x / width) * this.span
  }
}

/** Seconds between a ruler's ticks: the smallest not below `seconds` of 1, 2, 5 times a power of ten, 20, 30, or whole minutes. */
export function tickStep(seconds) {
  const minutes = [60, 120, 300, 600, 1800, 3600]
  if (seconds > 30) return minutes.find(step => step >= seconds) ?? 3600 * Math.ceil(seconds / 3600)
  if (seconds > 10) return seconds > 20 ? 30 : 20
  const ten = 10 ** Math.floor(Math.log10(seconds))
  return [1, 2, 5, 10].find(step => step * ten >= seconds * (1 - 1e-9)) * ten
}

/** Seconds as m:ss with as many decimals as a step needs. */
export function clockText(seconds, step = 0.001) {
  const decimals = Math.min(Math.max(Math.ceil(-Math.log10(step) - 1e-9), 0), 6)
  const unit = 10 ** decimals
  const rounded = Math.round(Math.abs(seconds) * unit) / unit
  const minutes = Math.floor(rounded / 60)
  const rest = (rounded - 60 * minutes).toFixed(decimals)
  const sign = seconds < 0 && rounded > 0 ? "-" : ""
  return `${sign}${minutes}:${rest.padStart(decimals ? decimals + 3 : 2, "0")}`
}

/** Canvas positions of the beats in a view, every second, fourth, ... one where they would lie closer than 6 pixels. grid: {bpm, first} or null. */
export function beatLines(view, width, grid) {
  if (!grid) return []
  let step = 60 / grid.bpm
  while ((step / view.span) * width < 6) step *= 2
  const lines = []
  for (let k = Math.ceil((view.start - grid.first) / step); grid.first + k * step <= view.end; k++) {
    lines.push(Math.round(view.toX(grid.first + k * step, width)))
  }
  return lines
}

/**
 * [[x, "bar.beat"], ...] of a view, at least 40 pixels apart; only bars where beats would lie closer.
 * grid: {bpm, first, bar} or null: the tempo, the time of beat 1 of bar 1, the beats of a bar.
 */
export function barLabels(view, width, grid) {
  if (!grid) return []
  const beat = 60 / grid.bpm
  let step = (beat / view.span) * width < 40 ? grid.bar : 1
  while (((step * beat) / view.span) * width < 40) step *= 2
  const labels = []
  for (let k = Math.ceil((view.start - grid.first) / (step * beat) - 1e-9); grid.first + k * step * beat <= view.end; k++) {
    const bar = Math.floor((k * step) / grid.bar)
    const within = k * step - bar * grid.bar
    labels.push([Math.round(view.toX(grid.first + k * step * beat, width)), step < grid.bar ? `${bar + 1}.${within + 1}` : `${bar + 1}`])
  }
  return labels
}
