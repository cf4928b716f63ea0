// The text form of regions, "1.5-3, 10-12.25", digit for digit that of Python (parse_regions, merge_regions, format_regions).
// tests/data/regions.json holds the cases that both languages are tested against.

import { decimal, float, strip } from "../python.js"

/** Why a text is not a list of regions. word: the faulty part. reason: unreadable, backwards, infinite or outside. */
export class RegionError extends Error {
  constructor(word, reason) {
    super(`${reason}: ${word}`)
    Object.assign(this, { word, reason })
  }
}

/** Regions [start, end] in seconds, in the order of the text, overlaps kept. Throws RegionError. */
export function parseRegions(text) {
  const regions = []
  for (const part of text.split(/[,;\n]/)) {
    const word = strip(part).replaceAll("–", "-")
    if (!word) continue
    const times = word.split("-").map(clock)
    if (times.length !== 2 || times.includes(null)) throw new RegionError(word, "unreadable")
    regions.push(times)
  }
  return regions
}

/** Sorted regions with overlaps merged. Throws RegionError where a region is not finite, ends before it starts, or starts before 0. */
export function mergeRegions(regions) {
  for (const [start, end] of regions) {
    const word = `${start}-${end}`
    if (!Number.isFinite(start) || !Number.isFinite(end)) throw new RegionError(word, "infinite")
    if (end <= start) throw new RegionError(word, "backwards")
    if (start < 0) throw new RegionError(word, "outside")
  }
  const merged = []
  for (const [start, end] of [...regions].sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    const last = merged.at(-1)
    if (last && start <= last[1]) last[1] = Math.max(last[1], end)
    else merged.push([start, end])
  }
  return merged
}

/** The text form, exact enough for every sample at 192 kHz. */
export function formatRegions(regions) {
  return regions.map(([start, end]) => `${decimal(start)}-${decimal(end)}`).join(", ")
}

/** Seconds of "seconds", "minutes:seconds" or "hours:minutes:seconds"; null where a part is not a number. */
function clock(text) {
  let seconds = 0
  for (const part of text.split(":")) {
    const value = float(part)
    if (value === null) return null
    seconds = seconds * 60 + value
  }
  return seconds
}
