// Adds the waveform editor to SA3_InpaintMask and SA3_Continue.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { after, language } from "./frontend.js"
import { WaveformEditor } from "./waveform/editor.js"
import { ExtensionModel, RegionsModel } from "./waveform/models.js"
import { recall } from "./waveform/recall.js"
import { keepResult } from "./waveform/source.js"
import { textsFor } from "./waveform/texts.js"

const MODELS = { SA3_InpaintMask: RegionsModel, SA3_Continue: ExtensionModel }
const MIN_HEIGHT = 270 // CSS pixels
const MIN_SIZE = [520, 460] // of the node
const ONE_LINE = { getMinHeight: () => 60, getMaxHeight: () => 60 } // the text widget leaves the height to the editor
const TO_THE_MILLISECOND = { precision: 3, round: 0.001 } // the number widget would round a dragged length to its step
const POLL = 300 // milliseconds: no event reports changes of links and widgets of other nodes
const RUNS = 64 // of the history, in which the result of a cached node may be

const editors = new Set()
const FORWARD = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp", wheel: "processMouseWheel" }

/** What an editor needs from the front end. */
function makeHost() {
  return {
    api,
    texts: textsFor(language()),
    outputs: () => app.nodeOutputs,
    capture() {
      app.canvas?.emitBeforeChange?.() // an empty transaction makes the graph's undo record the current state
      app.canvas?.emitAfterChange?.()
      app.canvas?.setDirty?.(true, true)
    },
    forward(event) {
      event.preventDefault()
      event.stopPropagation()
      app.canvas?.[FORWARD[event.type]]?.(event)
    },
  }
}

function attach(node, Model) {
  const host = makeHost()
  const editor = new WaveformEditor(node, new Model(node), host)
  const widget = node.addDOMWidget("waveform", "sa3_waveform", editor.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // the panel of a node's properties would draw over the node
    getMinHeight: () => MIN_HEIGHT,
    getValue: () => "",
    setValue: () => {},
  })
  widget.serialize = false
  widget.editor = editor
  Object.assign(editor.model.widget.options, editor.model.free ? ONE_LINE : TO_THE_MILLISECOND)
  const sync = () => editor.sync()
  const watched = editor.model.free ? ["regions"] : ["seconds", "side"]
  for (const one of node.widgets.filter(({ name }) => watched.includes(name))) after(one, "callback", sync)
  after(node, "onConnectionsChange", sync)
  after(node, "onConfigure", sync)
  after(node, "onExecuted", output => {
    keepResult(node, output)
    sync()
    host.capture() // so that a reloaded page has what it shows
  })
  after(node, "onRemoved", () => {
    editors.delete(editor)
    editor.remove()
  })
  node.setSize([Math.max(node.size[0], MIN_SIZE[0]), Math.max(node.size[1], MIN_SIZE[1])])
  editors.add(editor)
  requestAnimationFrame(() => editor.start()) // after the values of a loaded or pasted node are set
}

/** After a run: shows what it brought to editors without a recording, also where their node was cached. */
async function lookAgain() {
  await Promise.all([...editors].map(editor => editor.sounds.retry()))
  const waiting = [...editors].filter(editor => editor.sounds.waits)
  if (!waiting.length) return
  const history = await (await api.fetchApi(`/history?max_items=${RUNS}`)).json()
  const { output } = await app.graphToPrompt()
  for (const editor of waiting) {
    keepResult(editor.node, recall(Object.values(history), output, editor.node))
    await editor.sounds.retry()
    editor.host.capture()
  }
}

app.registerExtension({
  name: "sa3.waveformEditor",
  init() {
    const style = document.createElement("link")
    Object.assign(style, { rel: "stylesheet", href: new URL("./waveform/editor.css", import.meta.url).href })
    document.head.append(style)
    api.addEventListener("execution_success", lookAgain)
    setInterval(() => document.hidden || editors.forEach(editor => editor.sync()), POLL)
  },
  nodeCreated(node) {
    const Model = MODELS[node.comfyClass]
    if (Model) attach(node, Model)
  },
})
