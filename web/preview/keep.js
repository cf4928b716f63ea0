// The text of the `keep` widget: "all", "none", or numbers of items from 1 such as "1, 3-4". sa3_core/review.py reads the same.

/** The items (from 0) that the text names, or null where it cannot be read. */
export function parseKeep(text, count) {
  const words = String(text ?? "").trim().toLowerCase()
  if (words === "" || words === "all") return new Set(Array.from({ length: count }, (_, i) => i))
  if (words === "none") return new Set()
  const found = new Set()
  for (const word of words.replaceAll("–", "-").split(/[,;\n]/)) {
    if (!word.trim()) continue
    const [, first, last] = /^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$/.exec(word) ?? []
    const low = Number(first)
    const high = Number(last ?? first)
    if (!(low >= 1 && low <= high && high <= count)) return null
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
