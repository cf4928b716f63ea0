// The text form of regions, "1.5-3, 10-12.25": the same as sa3_core/regions.py, to the digit.

const SPACES = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*" // what Python strips
const TRIM = new RegExp(`^${SPACES}|${SPACES}$`, "gu")
const NUMBER = /^[+-]?(?:(?:\d(?:_?\d)*)?\.?(?:\d(?:_?\d)*)?)(?:e[+-]?\d(?:_?\d)*)?$/i
const WORDS = /^[+-]?(?:inf|infinity|nan)$/i

/** Why a text is no list of regions. `word` is the part that is wrong, `reason` one of unreadable, backwards, infinite, outside. */
export class RegionError extends Error {
  constructor(word, reason) {
    super(`${reason}: ${word}`)
    Object.assign(this, { word, reason })
  }
}

/** Regions [start, end] in seconds, as written: any order, overlaps kept. Throws RegionError. */
export function parseRegions(text) {
  const regions = []
  for (const part of text.replaceAll(";", ",").replaceAll("\n", ",").split(",")) {
    const word = strip(part).replaceAll("–", "-")
    if (!word) continue
    const times = word.split("-").map(clock)
    if (times.length !== 2 || times.includes(null)) throw new RegionError(word, "unreadable")
    regions.push(times)
  }
  return regions
}

/** Sorted regions with overlaps merged. Throws RegionError for what can be no region. */
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

/** Seconds with at most nine decimals, ties to even as Python rounds them. */
export function decimal(seconds) {
  if (seconds >= 1e21) return BigInt(seconds).toString()
  const exact = seconds.toFixed(60)
  const cut = exact.indexOf(".") + 10
  const even = Number(exact[cut - 1]) % 2 === 0
  const text = even && /^50*$/.test(exact.slice(cut)) ? exact.slice(0, cut) : seconds.toFixed(9)
  return text.replace(/0+$/, "").replace(/\.$/, "")
}

/** Seconds, minutes:seconds or hours:minutes:seconds; null when it is none of these. */
function clock(text) {
  let seconds = 0
  for (const part of strip(text).split(":")) {
    const value = number(part)
    if (value === null) return null
    seconds = seconds * 60 + value
  }
  return seconds
}

/** What Python's float() makes of a text, null where it refuses. */
function number(text) {
  const word = strip(text).replace(/\p{Nd}/gu, digit)
  if (WORDS.test(word)) return /nan/i.test(word) ? NaN : word.startsWith("-") ? -Infinity : Infinity
  if (!NUMBER.test(word) || !/^[+-]?\.?\d/.test(word)) return null
  return Number(word.replaceAll("_", ""))
}

/** The ASCII digit of a decimal digit of any script: Unicode keeps each script's ten in a row. */
function digit(character) {
  const isDigit = code => /^\p{Nd}$/u.test(String.fromCodePoint(code))
  const code = character.codePointAt(0)
  let first = code
  while (isDigit(first - 1)) first--
  return String((code - first) % 10)
}

function strip(text) {
  return text.replace(TRIM, "")
}
