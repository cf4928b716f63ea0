// The waveform editor on SA3_InpaintMask and SA3_Continue: an extension of ComfyUI's front end.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { after } from "./frontend.js"
import { WaveformEditor } from "./waveform/editor.js"
import { ExtensionModel, RegionsModel } from "./waveform/models.js"
import { resultOf } from "./waveform/source.js"
import { textsFor } from "./waveform/texts.js"

const MODELS = { SA3_InpaintMask: RegionsModel, SA3_Continue: ExtensionModel }
const HEIGHT = 270 // CSS pixels, at least
const NEW_SIZE = [520, 460] // of a node that is new
const ONE_LINE = { getMinHeight: () => 60, getMaxHeight: () => 60 } // of the text widget, so that the picture gets the room
const TO_THE_MILLISECOND = { precision: 3, round: 0.001 } // of the number widget, which else rounds what is dragged to its step
const EVERY = 300 // milliseconds between two looks at the graph: links and other nodes' widgets say nothing when they change

const editors = new Set()
const FORWARD = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp", wheel: "processMouseWheel" }

/** What an editor needs of the front end. */
function makeHost() {
  return {
    api,
    texts: textsFor(app.extensionManager?.setting?.get("Comfy.Locale")),
    outputs: () => app.nodeOutputs,
    capture() {
      app.canvas?.emitBeforeChange?.() // an empty transaction: the graph's undo takes note of what is new
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
    getMinHeight: () => HEIGHT,
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
  node.setSize([Math.max(node.size[0], NEW_SIZE[0]), Math.max(node.size[1], NEW_SIZE[1])])
  editors.add(editor)
  requestAnimationFrame(() => editor.start()) // once the values of a loaded or pasted node are in place
}

app.registerExtension({
  name: "sa3.waveformEditor",
  init() {
    const style = document.createElement("link")
    Object.assign(style, { rel: "stylesheet", href: new URL("./waveform/editor.css", import.meta.url).href })
    document.head.append(style)
    setInterval(() => document.hidden || editors.forEach(editor => editor.sync()), EVERY)
  },
  nodeCreated(node) {
    const Model = MODELS[node.comfyClass]
    if (Model) attach(node, Model)
  },
})
