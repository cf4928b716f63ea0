// SA3_PreviewBatch: a DOM widget that lists the items of a batch and writes the `keep` widget.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { after } from "./frontend.js"
import { ItemList } from "./preview/list.js"
import { acceptDrops, copyText, sourceFor, startDrag, useAsSource } from "./preview/source.js"
import { addStyle } from "./preview/style.js"
import { words } from "./preview/words.js"
import { fileUrl } from "./waveform/source.js"

const NODE = "SA3_PreviewBatch"
const ITEMS = "sa3_items" // key of the ui result (nodes/preview.py), and of the node property that restores the list after a reload
// CSS pixels
const ROW = 90
const HEAD = 34
const EMPTY = 44
const MARGINS = 20 // added by LiteGraph around a DOM widget
const WIDTH = 530 // of a node with items, at least
const VISIBLE = 4 // rows without scrolling

app.registerExtension({
  name: "StableAudio3.PreviewBatch",
  setup: () => acceptDrops(worked),
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    addStyle()
    const keep = node.widgets.find(widget => widget.name === "keep")
    const source = file => {
      const found = sourceFor(node)
      return worked(useAsSource(file, node.graph, found.pos, found.node))
    }
    const list = new ItemList(
      {
        get: () => keep.value,
        set: text => write(node, keep, text),
        linked: () => node.inputs?.some(input => input.name === "keep" && input.link != null) ?? false,
      },
      { copy: copyText, use: source, drag: startDrag },
    )
    let rows = 0
    const height = () => (rows ? HEAD + ROW * Math.min(rows, VISIBLE) : EMPTY)
    const options = { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: height }
    const widget = node.addDOMWidget(ITEMS, ITEMS, list.root, options)
    widget.serialize = false
    const show = items => {
      rows = items.length
      list.show(items.map(withUrls))
      list.root.style.minHeight = `${height() - MARGINS}px` // Nodes 2.0 of older front ends ignores getMinHeight
      const [width, least] = node.computeSize()
      node.setSize([Math.max(node.size[0], width, rows ? WIDTH : 0), Math.max(node.size[1], least)])
      app.graph?.setDirtyCanvas(true, true)
    }
    after(keep, "callback", () => list.read())
    after(node, "onConnectionsChange", () => list.read())
    after(node, "onExecuted", output => {
      if (!Array.isArray(output?.[ITEMS])) return
      node.properties[ITEMS] = output[ITEMS]
      show(output[ITEMS])
    })
    after(node, "onConfigure", () => show(saved(node)))
    after(node, "onRemoved", () => list.clear())
  },
})

/** Whether a promise is fulfilled; a failure is shown. */
async function worked(promise) {
  try {
    await promise
    return true
  } catch (error) {
    app.extensionManager?.toast?.add({ severity: "warn", summary: words().failed, detail: String(error?.message ?? error), life: 8000 })
    return false
  }
}

function write(node, keep, text) {
  if (keep.value === text) return
  keep.value = text
  keep.callback?.(text, app.canvas, node)
  node.graph?.change?.() // marks the workflow as modified
}

/** The items of the last run from the node's properties, which are untrusted: [] where they are malformed. */
function saved(node) {
  const items = node.properties?.[ITEMS]
  return Array.isArray(items) && items.every(item => item?.audio?.filename && Number.isFinite(item.seconds)) ? items : []
}

/** An item with its files as URLs of the server. */
function withUrls(item) {
  const url = file => file && fileUrl(api, { ...file, type: "temp" })
  return { ...item, audio: url(item.audio), original: url(item.original), picture: url(item.picture) }
}
