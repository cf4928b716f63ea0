// The keys while the canvas has the focus. Keys that are not listed here reach the graph.

import { nudge, selectNext } from "./actions.js"

const STEP = 0.01 // seconds of an arrow key

/** Runs the action of a key event. Returns whether it has one. */
export function press(editor, event) {
  const name = nameOf(event)
  const run = KEYS[name]
  if (!run) return false
  run(editor, event)
  return true
}

function nameOf({ key, ctrlKey, metaKey, shiftKey, altKey }) {
  const small = key.length === 1 ? key.toLowerCase() : key
  if (ctrlKey || metaKey) return altKey ? "" : `Ctrl+${shiftKey ? "Shift+" : ""}${small}`
  if (key === " ") return shiftKey ? "Shift+Space" : "Space"
  return small
}

const KEYS = {
  Space: editor => editor.act("play"),
  "Shift+Space": editor => editor.act(editor.model.free ? "playRegion" : "play"),
  Delete: editor => editor.act("remove"),
  Backspace: editor => editor.act("remove"),
  Enter: editor => editor.act("add"),
  Escape: editor => editor.act("deselect"),
  Home: editor => editor.setCursor(editor.view.from, true),
  End: editor => editor.setCursor(editor.view.to, true),
  ArrowUp: editor => selectNext(editor, -1),
  ArrowDown: editor => selectNext(editor, 1),
  ArrowLeft: (editor, event) => arrow(editor, event, -1),
  ArrowRight: (editor, event) => arrow(editor, event, 1),
  "+": editor => editor.act("zoomIn"),
  "=": editor => editor.act("zoomIn"),
  "-": editor => editor.act("zoomOut"),
  0: editor => editor.act("fit"),
  l: editor => editor.act("loop"),
  a: editor => editor.act("after"),
  h: editor => editor.act("help"),
  "?": editor => editor.act("help"),
  "Ctrl+z": editor => editor.act("undo"),
  "Ctrl+y": editor => editor.act("redo"),
  "Ctrl+Shift+z": editor => editor.act("redo"),
}

function arrow(editor, { shiftKey, altKey }, direction) {
  const { settings } = editor
  const step = (settings.beats ? 60 / settings.bpm : STEP) * (shiftKey ? 10 : 1) * direction
  if (!editor.model.free) nudge(editor, step, false)
  else if (editor.selected === null) editor.setCursor(editor.cursor + step, true)
  else nudge(editor, step, !altKey)
}
