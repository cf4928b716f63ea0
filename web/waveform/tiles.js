// The spectrogram, computed in tiles for the visible part, a few milliseconds at a time.

import { column, Fft, rowBins } from "./spectrum.js"

const COLUMNS = 128
const ROWS = 96
const KEPT = 200 // tiles, 49 kB each
const BUDGET = 6 // milliseconds of work before the page may draw
const MAX_WINDOWS = 4 // of a column
const COARSER = 8 // levels up that may replace a missing tile

const STOPS = [
  [0, 13, 14, 20],
  [0.3, 38, 22, 84],
  [0.5, 22, 80, 150],
  [0.68, 30, 155, 158],
  [0.85, 160, 214, 116],
  [1, 253, 250, 214],
]
const PALETTE = Uint32Array.from({ length: 256 }, (_, i) => shade(i / 255)) // ABGR, the byte order of ImageData

export class Tiles {
  /** clip: {samples, rate}. onTile(): called when more tiles can be drawn. */
  constructor(clip, onTile) {
    this.clip = clip
    this.onTile = onTile
    this.fft = new Fft()
    this.bins = rowBins(ROWS, clip.rate)
    this.row = new Float32Array(ROWS)
    this.done = new Map() // "level:index" -> canvas, the least recently drawn first
    this.wanted = []
    this.timer = 0
  }

  /** Draws the available tiles of the view and queues the missing ones, the middle first. pixels: device pixels across. */
  draw(context, view, width, top, height, pixels) {
    const level = Math.floor(Math.log2(view.span / pixels))
    const seconds = COLUMNS * 2 ** level // of a tile
    const duration = this.clip.samples.length / this.clip.rate
    const from = Math.max(view.start, 0)
    const last = Math.ceil(Math.min(view.end, duration) / seconds)
    const wanted = []
    for (let index = Math.floor(from / seconds); index < last; index++) {
      const tile = this.find(level, index)
      if (tile?.level !== level) wanted.push([level, index])
      if (tile) this.place(context, tile, index * seconds, seconds, view, width, top, height, duration)
    }
    const middle = (from + Math.min(view.end, duration)) / 2 / seconds
    this.wanted = wanted.sort((a, b) => Math.abs(a[1] + 0.5 - middle) - Math.abs(b[1] + 0.5 - middle))
    if (this.job && !this.wanted.some(([l, i]) => `${l}:${i}` === this.job.key)) this.job = null
    this.plan()
  }

  stop() {
    clearTimeout(this.timer)
    this.timer = 0
    this.wanted = []
    this.job = null
  }

  place(context, { canvas, level, index }, start, seconds, view, width, top, height, duration) {
    const stop = Math.min(start + seconds, duration)
    const own = COLUMNS * 2 ** level
    const sourceX = ((start - index * own) / own) * COLUMNS
    const sourceWidth = ((stop - start) / own) * COLUMNS
    const x = view.toX(start, width)
    context.drawImage(canvas, sourceX, 0, sourceWidth, ROWS, x, top, view.toX(stop, width) - x + 0.5, height)
  }

  /** The tile, or the finest coarser one that covers it. */
  find(level, index) {
    for (let up = 0; up <= COARSER; up++, index >>= 1) {
      const key = `${level + up}:${index}`
      const canvas = this.done.get(key)
      if (!canvas) continue
      this.done.delete(key)
      this.done.set(key, canvas)
      return { canvas, level: level + up, index }
    }
    return null
  }

  plan() {
    if (!this.timer && this.wanted.length) this.timer = setTimeout(() => this.work())
  }

  work() {
    this.timer = 0
    const end = performance.now() + BUDGET
    let finished = false
    while (performance.now() < end && (this.job || this.wanted.length)) {
      this.job ??= this.begin(...this.wanted.shift())
      if (this.advance(this.job, end)) {
        this.keep(this.job)
        this.job = null
        finished = true
      }
    }
    if (this.job || this.wanted.length) this.timer = setTimeout(() => this.work())
    if (finished) this.onTile()
  }

  begin(level, index) {
    return { key: `${level}:${index}`, level, index, at: 0, image: new ImageData(COLUMNS, ROWS) }
  }

  /** Computes columns of a tile until the time `end`. Returns whether the tile is complete. */
  advance(job, end) {
    const { samples, rate } = this.clip
    const hop = 2 ** job.level * rate
    const windows = Math.min(Math.max(Math.round(hop / this.fft.size), 1), MAX_WINDOWS)
    const pixels = new Uint32Array(job.image.data.buffer)
    while (job.at < COLUMNS) {
      const centre = (job.index * COLUMNS + job.at + 0.5) * hop
      if (centre - hop < samples.length) {
        column(this.fft, samples, centre, hop, windows, this.bins, this.row)
        for (let row = 0; row < ROWS; row++) pixels[row * COLUMNS + job.at] = PALETTE[Math.round(this.row[row] * 255)]
      }
      job.at++
      if (performance.now() > end) break
    }
    return job.at === COLUMNS
  }

  keep({ key, image }) {
    const canvas = document.createElement("canvas")
    canvas.width = COLUMNS
    canvas.height = ROWS
    canvas.getContext("2d").putImageData(image, 0, 0)
    this.done.set(key, canvas)
    if (this.done.size > KEPT) this.done.delete(this.done.keys().next().value)
  }
}

function shade(value) {
  const above = Math.max(STOPS.findIndex(([at]) => at >= value), 1)
  const [low, ...from] = STOPS[above - 1]
  const [high, ...to] = STOPS[above]
  const part = (value - low) / (high - low)
  const [r, g, b] = from.map((one, i) => Math.round(one + (to[i] - one) * part))
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0
}
