// The text of the `keep` widget: "all", "none", or item numbers from 1 such as "1, 3-4". Python's parse_items reads the same;
// tests/data/keep.json holds the cases that both languages are tested against.

import { asciiDigits, strip } from "../python.js"

const LONGEST = 40 // characters of a number or range

/** Set of item indices from 0, null where the text is not valid for `count` items. */
export function parseKeep(text, count) {
  const words = strip(String(text ?? "")).toLowerCase()
  if (words === "" || words === "all") return new Set(Array.from({ length: count }, (_, i) => i))
  if (words === "none") return new Set()
  const found = new Set()
  for (const word of words.replaceAll("–", "-").split(/[,;\n]/)) {
    if (!strip(word)) continue
    const cut = word.indexOf("-")
    const [first, last] = (cut < 0 ? [word, word] : [word.slice(0, cut), word.slice(cut + 1)]).map(part => asciiDigits(strip(part)))
    if (!/^\d+$/.test(first) || !/^\d+$/.test(last) || [...word].length > LONGEST) return null
    const [low, high] = [Number(first), Number(last)]
    if (low < 1 || low > high || high > count) return null
    for (let i = low - 1; i < high; i++) found.add(i)
  }
  return found
}

/** The shortest text for a set of items. */
export function formatKeep(items, count) {
  if (items.size === count) return "all"
  if (!items.size) return "none"
  const sorted = [...items].sort((a, b) => a - b)
  const runs = []
  for (const item of sorted) {
    const run = runs.at(-1)
    if (run && run[1] === item - 1) run[1] = item
    else runs.push([item, item])
  }
  return runs.map(([first, last]) => (first === last ? `${first + 1}` : `${first + 1}-${last + 1}`)).join(", ")
}
