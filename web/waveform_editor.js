// Adds the waveform editor to SA3_InpaintMask and SA3_Continue.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { after, language } from "./frontend.js"
import { WaveformEditor } from "./waveform/editor.js"
import { ExtensionModel, RegionsModel } from "./waveform/models.js"
import { resultOf } from "./waveform/source.js"
import { textsFor } from "./waveform/texts.js"

const MODELS = { SA3_InpaintMask: RegionsModel, SA3_Continue: ExtensionModel }
const MIN_HEIGHT = 270 // CSS pixels
const MIN_SIZE = [520, 460] // of the node
const ONE_LINE = { getMinHeight: () => 60, getMaxHeight: () => 60 } // the text widget leaves the height to the editor
const TO_THE_MILLISECOND = { precision: 3, round: 0.001 } // the number widget would round a dragged length to its step
const POLL = 300 // milliseconds: no event reports changes of links and widgets of other nodes

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
  const editor = new WaveformEditor(node, new Model(node), makeHost())
  const widget = node.addDOMWidget("waveform", "sa3_waveform", editor.element, {
    serialize: false,
    hideOnZoom: false,
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
    node.sa3Result = resultOf(node, output)
    sync()
  })
  after(node, "onRemoved", () => {
    editors.delete(editor)
    editor.remove()
  })
  node.setSize([Math.max(node.size[0], MIN_SIZE[0]), Math.max(node.size[1], MIN_SIZE[1])])
  editors.add(editor)
  requestAnimationFrame(() => editor.start()) // after the values of a loaded or pasted node are set
}

app.registerExtension({
  name: "sa3.waveformEditor",
  init() {
    const style = document.createElement("link")
    Object.assign(style, { rel: "stylesheet", href: new URL("./waveform/editor.css", import.meta.url).href })
    document.head.append(style)
    setInterval(() => document.hidden || editors.forEach(editor => editor.sync()), POLL)
  },
  nodeCreated(node) {
    const Model = MODELS[node.comfyClass]
    if (Model) attach(node, Model)
  },
})
