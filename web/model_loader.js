// SA3_ModelLoader: a button that says when only the demo would run, and downloads a model after the user's confirmation.
//
// The download is one SA3_Download node, queued under the loader's id: ComfyUI's queue runs it, and its progress, its text and its
// errors show on the loader. The server uses its own login; no token passes through the page.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { chooseModel } from "./download/dialog.js"
import { lastEvent } from "./download/job.js"
import { WORDS } from "./download/words.js"
import { after, executionId, localized, nodeOf, rootGraph } from "./frontend.js"
import { showLine } from "./progress_line.js"

const TYPE = "SA3_ModelLoader"
const BY_NAME = "by name"
const HEIGHT = 36 // CSS pixels, margins included
const STYLE = `min-height: 28px; width: 100%; cursor: pointer; font: 12px/1.2 Inter, system-ui, sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); border-radius: 8px`
const updates = new Set() // of the buttons of all loaders
let download = null // {graph: id of the workflow, loader: execution id, name, prompt: id or null while it is being queued, started}
let early = [] // events that arrive before the answer that names their prompt

app.registerExtension({
  name: "StableAudio3.ModelLoader",
  setup() {
    for (const kind of ["execution_start", "execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(kind, dispatch)
    api.addEventListener("reconnected", catchUp)
  },
  nodeCreated(node) {
    if (node.comfyClass === TYPE) attach(node)
  },
})

function attach(node) {
  const button = document.createElement("button")
  button.style.cssText = STYLE
  button.onclick = () => (download ? stop() : get(node))
  const height = () => HEIGHT
  const options = { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: height, getMaxHeight: height, margin: 4 }
  node.addDOMWidget("get_model", "sa3_get_model", button, options).serialize = false
  const update = () => {
    const { model, file } = choices(node)
    const demo = file.value === BY_NAME && (model.value.startsWith("demo") || (model.value === "auto" && !files(node).length))
    button.textContent = localized(WORDS)[download ? "stop" : demo ? "demo" : "get"]
  }
  updates.add(update)
  const { model, file } = choices(node)
  after(model, "callback", update)
  after(file, "callback", update)
  after(node, "onConfigure", update)
  after(node, "refreshComboInNode", () => queueMicrotask(update)) // the front end writes the new lists after this call
  after(node, "onRemoved", () => updates.delete(update))
  update()
}

function choices(node) {
  const [model, file] = ["model", "file"].map(name => node.widgets.find(widget => widget.name === name))
  return { model, file }
}

/** The models on disk, as in the loader's list. */
function files(node) {
  const { values } = choices(node).file.options
  return (typeof values === "function" ? values() : values).filter(one => one !== BY_NAME)
}

async function get(node) {
  const choice = await chooseModel(localized(WORDS), files(node))
  if (!choice || download) return
  download = { graph: rootGraph().id, loader: executionId(node), name: choice.model, prompt: null, started: false }
  show(download, localized(WORDS).queued)
  try {
    const output = { [download.loader]: { class_type: "SA3_Download", inputs: { ...choice, confirm: true } } }
    download.prompt = (await api.queuePrompt(0, { output, workflow: rootGraph().serialize() })).prompt_id
    early.splice(0).forEach(dispatch)
  } catch (error) {
    early = []
    end(String(error?.message ?? error))
  }
}

async function stop() {
  const one = download
  if (!one.prompt) return
  if (!one.started) {
    await api.deleteItem("queue", one.prompt)
    await catchUp() // it may have started meanwhile
  }
  if (download === one && one.started) await api.interrupt(one.prompt)
}

/** Handles what happened to the download without an event: the connection was lost, or the download was deleted from the queue. */
async function catchUp() {
  const one = download
  if (!one?.prompt) return
  const json = async path => (await api.fetchApi(path)).json()
  const queue = await json("/queue")
  const event = lastEvent(one.prompt, queue, await json(`/history/${one.prompt}`))
  if (event) await dispatch(event)
}

async function dispatch(event) {
  const { type, detail } = event
  if (download && !download.prompt) return early.push(event)
  if (!download || detail?.prompt_id !== download.prompt) return
  const words = localized(WORDS)
  if (type === "execution_start") download.started = true
  else if (type === "execution_error") end(detail.exception_message)
  else if (type === "execution_interrupted") end(words.stopped(download.name))
  else if (type === "gone") end("")
  else {
    const one = download
    try {
      await app.refreshComboInNodes()
    } finally {
      if (download === one) {
        end(words.ready(one.name))
        choose(one)
      }
    }
  }
}

/** Sets the loader that started a download to its model. */
function choose(one) {
  const node = loaderOf(one)
  if (!node) return
  const { model, file } = choices(node)
  file.value = BY_NAME
  model.value = one.name
  model.callback?.(model.value, app.canvas, node)
}

function end(text) {
  if (!download) return
  const one = download
  download = null
  show(one, text)
}

function show(one, text) {
  const node = loaderOf(one)
  if (node) showLine(node, text)
  updates.forEach(update => update())
}

/** The loader that started a download, null while another workflow is open. */
function loaderOf({ graph, loader }) {
  const node = rootGraph().id === graph ? nodeOf(loader) : null
  return node?.comfyClass === TYPE ? node : null
}
