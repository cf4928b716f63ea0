// Builds the elements of the editor: buttons, beat grid, canvases, messages, the list of keys.

import { LIMITS } from "./settings.js"

const PATHS = {
  play: "M5 3l8 5-8 5z",
  stop: "M4 4h8v8H4z",
  playRegion: "M2 2v12M14 2v12M6 4.5l5.5 3.5L6 11.5z",
  loop: "M4 6.5V5h8v5M12 11.5V13H4V8M9.5 8l2.5 2.5L14.5 8M1.5 10L4 7.5 6.5 10",
  after: "M8 2v12M6 4.5H2v7h4M10 4.5h4v7h-4M11 7h2M11 9h2",
  undo: "M6 3L3 6l3 3M3 6h6a4 4 0 0 1 0 8H7",
  redo: "M10 3l3 3-3 3M13 6H7a4 4 0 0 0 0 8h2",
  remove: "M3 4h10M6 4V2.5h4V4M4.5 4l.6 9.5h5.8l.6-9.5M6.7 6.5v4.5M9.3 6.5v4.5",
  zoomOut: "M7 12A5 5 0 1 0 7 2a5 5 0 0 0 0 10zM10.7 10.7L14 14M4.8 7h4.4",
  zoomIn: "M7 12A5 5 0 1 0 7 2a5 5 0 0 0 0 10zM10.7 10.7L14 14M4.8 7h4.4M7 4.8v4.4",
  fit: "M2 3v10M14 3v10M4 8h8M6.5 5.5L4 8l2.5 2.5M9.5 5.5L12 8l-2.5 2.5",
  beats: "M6 12.5V3.5l6-1.5v9M6 12.5a2 1.6 0 1 1-4 0 2 1.6 0 0 1 4 0zM12 11a2 1.6 0 1 1-4 0 2 1.6 0 0 1 4 0z",
  zero: "M1 8h14M2 8c1.5-7 4.5-7 6 0s4.5 7 6 0",
  help: "M5.8 6a2.2 2.2 0 1 1 3.2 2c-.7.4-1 .8-1 1.6M8 12v.6",
}
const FILLED = ["play", "stop"]

/** {root, stage, canvases, message, hint, buttons, inputs, grid, keys}. grid: around the inputs. free: for free regions. act(name) runs a button's action. */
export function build(texts, free, act) {
  const root = element("div", "sa3w", { role: "group", "aria-label": texts.editor, "data-capture-wheel": "true" })
  const bar = element("div", "sa3w-bar", { role: "toolbar", "aria-label": texts.editor })
  const buttons = {}
  const groups = [
    free ? ["play", "playRegion", "loop", "after"] : ["play", "loop", "after"],
    free ? ["undo", "redo", "remove"] : ["undo", "redo"],
    ["zoomOut", "zoomIn", "fit"],
    ["beats", "zero"],
  ]
  for (const names of groups) {
    const group = element("div", "sa3w-group")
    for (const name of names) group.append((buttons[name] = button(name, texts[name], act)))
    bar.append(group)
  }
  const inputs = {
    bpm: number(texts.bpm, LIMITS.bpm, 0.01, "BPM"),
    bar: number(texts.bar, LIMITS.bar, 1, texts.perBar),
    first: number(texts.first, LIMITS.first, 0.001, "s"),
  }
  const end = element("div", "sa3w-group sa3w-end")
  end.append((buttons.help = button("help", texts.help, act)))
  const grid = element("div", "sa3w-grid")
  grid.append(...Object.values(inputs).map(input => input.parentElement))
  bar.append(end, grid)
  const stage = element("div", "sa3w-stage", { tabindex: "0", role: "application", "aria-label": texts.editor })
  stage.type = "textarea" // the front end's graph undo ignores keys in text areas, since 1.58 in editable elements
  Object.defineProperty(stage, "isContentEditable", { value: true })
  const canvases = [0, 1].map(() => element("canvas", "sa3w-canvas", { "aria-hidden": "true" }))
  const message = element("div", "sa3w-message", { role: "status" })
  const keys = element("dl", "sa3w-keys")
  keys.hidden = true
  stage.append(...canvases, message)
  const hint = element("div", "sa3w-hint", { "aria-live": "polite" })
  root.append(bar, stage, hint, keys)
  for (const [key, does] of free ? texts.keys : texts.keysExtension) {
    keys.append(Object.assign(element("dt"), { textContent: key }), Object.assign(element("dd"), { textContent: does }))
  }
  return { root, stage, canvases, message, hint, buttons, inputs, grid, keys }
}

/** Changes the icon and label of a button. */
export function relabel(target, name, label) {
  if (target.dataset.icon === name) return
  target.dataset.icon = name
  target.title = label
  target.setAttribute("aria-label", label)
  target.replaceChildren(icon(name))
}

function button(name, label, act) {
  const created = element("button", "sa3w-button", { type: "button", "data-action": name })
  relabel(created, name, label)
  created.addEventListener("pointerdown", event => event.preventDefault()) // keeps the focus on the canvas
  created.addEventListener("click", () => act(name))
  return created
}

function number(label, [min, max], step, unit) {
  const holder = element("label", "sa3w-number", { title: label })
  const input = element("input", "", { type: "number", min, max, step, "aria-label": label })
  holder.append(input, Object.assign(element("span"), { textContent: unit }))
  return input
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path")
  svg.setAttribute("viewBox", "0 0 16 16")
  svg.setAttribute("aria-hidden", "true")
  path.setAttribute("d", PATHS[name])
  if (FILLED.includes(name)) path.setAttribute("fill", "currentColor")
  svg.append(path)
  return svg
}

function element(tag, classes = "", attributes = {}) {
  const created = document.createElement(tag)
  if (classes) created.className = classes
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value)
  return created
}
