// What an editor remembers beside the widgets: the grid and what is seen, in the node's properties, so no part of the graph's API form.

const NAME = "sa3_waveform"
export const DEFAULTS = { beats: false, zero: false, bpm: 120, first: 0, start: null, span: null }

export function readSettings(node) {
  const kept = node.properties?.[NAME]
  const settings = { ...DEFAULTS }
  for (const key of Object.keys(DEFAULTS)) {
    if (kept && typeof kept[key] === typeof (DEFAULTS[key] ?? 0)) settings[key] = kept[key]
  }
  settings.bpm = Math.min(Math.max(settings.bpm, 20), 400)
  return settings
}

/** Keeps only what differs from the defaults, so an editor that nobody touched leaves no trace in the file. */
export function writeSettings(node, settings) {
  const changed = Object.fromEntries(Object.entries(settings).filter(([key, value]) => value !== DEFAULTS[key]))
  if (Object.keys(changed).length) node.properties[NAME] = changed
  else delete node.properties[NAME]
}

/** The settings as kept, to see whether somebody else has changed them. */
export function keptSettings(node) {
  return JSON.stringify(node.properties?.[NAME] ?? null)
}
