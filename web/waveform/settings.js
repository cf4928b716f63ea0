// The grid and the view of an editor, saved in the node's properties: part of the workflow, not of the API prompt.

const NAME = "sa3_waveform" // of the property
export const LIMITS = { bpm: [20, 400], bar: [1, 16], first: [0, 600] }
export const DEFAULTS = { beats: false, zero: false, loop: false, bpm: 120, first: 0, bar: 4, start: null, span: null }

/** The saved settings, which are untrusted: a value of the wrong type becomes the default, a number its nearest valid one. */
export function readSettings(node) {
  const saved = node.properties?.[NAME]
  const settings = { ...DEFAULTS }
  for (const key of Object.keys(DEFAULTS)) {
    if (saved && typeof saved[key] === typeof (DEFAULTS[key] ?? 0)) settings[key] = normalized(key, saved[key])
  }
  return settings
}

/** The nearest valid value of a setting. */
export function normalized(name, value) {
  if (typeof value !== "number") return value
  if (!Number.isFinite(value)) return DEFAULTS[name]
  const [low, high] = LIMITS[name] ?? [-Infinity, Infinity]
  return Math.min(Math.max(name === "bar" ? Math.round(value) : value, low), high)
}

/** Saves what differs from the defaults, so an untouched editor adds nothing to the file. */
export function writeSettings(node, settings) {
  const changed = Object.fromEntries(Object.entries(settings).filter(([key, value]) => value !== DEFAULTS[key]))
  if (Object.keys(changed).length) node.properties[NAME] = changed
  else delete node.properties[NAME]
}

/** The saved settings as text, to detect changes by undo, paste or another extension. */
export function settingsText(node) {
  return JSON.stringify(node.properties?.[NAME] ?? null)
}
