// Minimum, maximum and RMS of a clip at every zoom: a pyramid over blocks of samples.

const BLOCK = 64 // samples of the finest level
const RATIO = 4 // blocks of one level in a block of the next
const CHUNK = 1 << 21 // samples between two pauses

export class Peaks {
  /** channels: Float32Arrays of one length. pause(): awaited between chunks, so that the page stays responsive. */
  static async build(channels, pause = async () => {}) {
    const blocks = Math.ceil(channels[0].length / BLOCK)
    const level = emptyLevel(blocks, BLOCK)
    for (let block = 0; block < blocks; block += CHUNK / BLOCK) {
      fillFinest(level, channels, block, Math.min(block + CHUNK / BLOCK, blocks))
      await pause()
    }
    const levels = [level]
    while (levels.at(-1).min.length > 256) levels.push(coarser(levels.at(-1)))
    return new Peaks(levels)
  }

  constructor(levels) {
    this.levels = levels
  }

  /** {min, max, rms} over the samples [from, to), extended to whole blocks of the coarsest level whose blocks are not longer. */
  over(from, to) {
    const level = this.levelFor(to - from)
    const first = Math.max(Math.floor(from / level.block), 0)
    const last = Math.min(Math.max(Math.ceil(to / level.block), first + 1), level.min.length)
    let min = Infinity
    let max = -Infinity
    let square = 0
    for (let i = first; i < last; i++) {
      if (level.min[i] < min) min = level.min[i]
      if (level.max[i] > max) max = level.max[i]
      square += level.square[i]
    }
    return last > first ? { min, max, rms: Math.sqrt(square / (last - first)) } : { min: 0, max: 0, rms: 0 }
  }

  levelFor(samples) {
    return this.levels.findLast(level => level.block <= samples) ?? this.levels[0]
  }

  /** The largest magnitude in the clip. */
  get peak() {
    const { min, max } = this.over(0, Infinity)
    return Math.max(-min, max, 0)
  }
}

/** {min, max, rms} over the samples [from, to) of a clip {samples, peaks}; min > max outside the clip. */
export function extremes({ samples, peaks }, from, to) {
  if (to <= 0 || from >= samples.length) return { min: 1, max: -1, rms: 0 }
  if (to - from >= BLOCK) return peaks.over(from, to)
  let [min, max, square] = [Infinity, -Infinity, 0]
  const first = Math.max(Math.floor(from), 0)
  const last = Math.min(Math.ceil(to) + 1, samples.length) // one sample more, so that columns join
  for (let n = first; n < last; n++) {
    const value = samples[n]
    if (value < min) min = value
    if (value > max) max = value
    square += value * value
  }
  return { min, max, rms: Math.sqrt(square / Math.max(last - first, 1)) }
}

function emptyLevel(blocks, block) {
  return { block, min: new Float32Array(blocks), max: new Float32Array(blocks), square: new Float32Array(blocks) }
}

function fillFinest(level, channels, first, last) {
  const length = channels[0].length
  for (let i = first; i < last; i++) {
    const end = Math.min((i + 1) * BLOCK, length)
    let min = Infinity
    let max = -Infinity
    let square = 0
    for (const samples of channels) {
      for (let n = i * BLOCK; n < end; n++) {
        const value = samples[n]
        if (value < min) min = value
        if (value > max) max = value
        square += value * value
      }
    }
    level.min[i] = min
    level.max[i] = max
    level.square[i] = square / ((end - i * BLOCK) * channels.length)
  }
}

function coarser(fine) {
  const level = emptyLevel(Math.ceil(fine.min.length / RATIO), fine.block * RATIO)
  for (let i = 0; i < level.min.length; i++) {
    const from = i * RATIO
    const to = Math.min(from + RATIO, fine.min.length)
    let min = Infinity
    let max = -Infinity
    let square = 0
    for (let n = from; n < to; n++) {
      min = Math.min(min, fine.min[n])
      max = Math.max(max, fine.max[n])
      square += fine.square[n]
    }
    level.min[i] = min
    level.max[i] = max
    level.square[i] = square / (to - from)
  }
  return level
}
