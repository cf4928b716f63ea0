// What the buttons and keys do to an editor.

const GAP = 1e-6 // seconds between a nudged region and its neighbour: regions that touch are merged

export const ACTIONS = {
  play: editor => (editor.player.playing ? editor.player.stop() : editor.playFrom(editor.cursor)),
  playRegion: editor => editor.selected !== null && editor.playFrom(...editor.regions[editor.selected]),
  undo: editor => editor.history && editor.restore(editor.history.undo()),
  redo: editor => editor.history && editor.restore(editor.history.redo()),
  remove,
  add,
  zoomIn: editor => zoom(editor, 0.5),
  zoomOut: editor => zoom(editor, 2),
  fit: editor => {
    editor.view.fit()
    editor.saveView()
  },
  beats: editor => toggle(editor, "beats"),
  zero: editor => toggle(editor, "zero"),
  loop: editor => {
    toggle(editor, "loop")
    if (editor.player.playing) editor.resume()
  },
  after: editor => editor.sounds.resultFile && editor.compare(),
  help: editor => (editor.parts.keys.hidden = !editor.parts.keys.hidden),
  deselect: editor => {
    editor.player.stop()
    editor.gestures.cancel()
    editor.parts.keys.hidden = true
    editor.select(null)
  },
}

/** Selects the next (step 1) or previous (-1) region and moves the cursor to its start. */
export function selectNext(editor, step) {
  const count = editor.regions.length
  if (!editor.model.free || !count) return
  editor.select(editor.selected === null ? (step > 0 ? 0 : count - 1) : (editor.selected + step + count) % count)
  editor.setCursor(editor.regions[editor.selected][0], true)
}

/** Moves the selected region (whole) or only its end, up to its neighbours. Changes the length of a continuation. */
export function nudge(editor, step, whole) {
  if (!editor.editable) return
  const { model, selected, bounds } = editor
  const regions = editor.regions.map(region => [...region])
  const index = model.free ? selected : 0
  const region = regions[index]
  const low = Math.max(bounds[0], (regions[index - 1]?.[1] ?? -Infinity) + GAP)
  const high = Math.min(bounds[1], (regions[index + 1]?.[0] ?? Infinity) - GAP)
  if (!model.free) region[model.edge] += model.before ? -step : step
  else if (whole) regions[index] = region.map(time => time + Math.min(Math.max(step, low - region[0]), high - region[1]))
  else region[1] = Math.min(region[1] + step, high)
  regions[index] = regions[index].map(time => Number(time.toFixed(9)))
  const [start, end] = regions[index]
  if (end - start >= model.shortest) editor.commit(regions, model.free ? index : null, `nudge ${index} ${whole}`)
}

function add(editor) {
  const { model, settings, view, regions, bounds } = editor
  if (!model.free || !editor.editable) return
  const start = editor.snapped(editor.cursor)
  const end = Math.min(editor.snapped(start + (settings.beats ? 60 / settings.bpm : Math.max(view.span / 20, 0.1))), bounds[1])
  if (end - start >= model.shortest) editor.commit([...regions, [start, end]], regions.length)
}

function remove(editor) {
  const { model, regions, selected } = editor
  if (!model.free || selected === null || !editor.editable) return
  editor.select(null)
  editor.commit(regions.filter((_, i) => i !== selected), null)
}

function zoom(editor, factor) {
  const { view, cursor } = editor
  view.zoom(factor, cursor >= view.start && cursor <= view.end ? cursor : view.start + view.span / 2)
  editor.saveView()
}

function toggle(editor, name) {
  editor.settings[name] = !editor.settings[name]
  editor.saveSettings()
}
