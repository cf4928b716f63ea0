// SA3_PreviewBatch in the editor: its items as a list that writes the `keep` widget. Both renderers show it as a DOM widget.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { after } from "./frontend.js"
import { ItemList } from "./preview/list.js"
import { addStyle } from "./preview/style.js"

const NODE = "SA3_PreviewBatch"
const ITEMS = "sa3_items" // of the node's ui result, and of its properties: what was shown last survives a reload
const ROW = 90
const HEAD = 34
const MARGINS = 20 // that LiteGraph leaves around a DOM widget
const WIDTH = 420

app.registerExtension({
  name: "StableAudio3.PreviewBatch",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    addStyle()
    const keep = node.widgets.find(widget => widget.name === "keep")
    const list = new ItemList({
      get: () => keep.value,
      set: text => write(node, keep, text),
      linked: () => node.inputs?.some(input => input.name === "keep" && input.link != null) ?? false,
    })
    let rows = 0
    const height = () => (rows ? HEAD + ROW * Math.min(rows, 4) : 44)
    const widget = node.addDOMWidget(ITEMS, ITEMS, list.root, { serialize: false, hideOnZoom: false, getMinHeight: height })
    widget.serialize = false
    const show = items => {
      rows = items.length
      list.show(items.map(withAddresses))
      list.root.style.minHeight = `${height() - MARGINS}px` // the second renderer of older editors asks nobody for a height
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

function write(node, keep, text) {
  if (keep.value === text) return
  keep.value = text
  keep.callback?.(text, app.canvas, node)
  node.graph?.change?.() // a workflow that differs from the saved one
}

/** What the properties hold of the last run; a workflow from elsewhere may hold anything. */
function saved(node) {
  const items = node.properties?.[ITEMS]
  return Array.isArray(items) && items.every(item => item?.audio?.filename && Number.isFinite(item.seconds)) ? items : []
}

function withAddresses(item) {
  const address = file => file && api.apiURL(`/view?${new URLSearchParams({ filename: file.filename, subfolder: file.subfolder, type: "temp" })}`)
  return { ...item, audio: address(item.audio), original: address(item.original), picture: address(item.picture) }
}
