// The text that a node of this pack shows while it runs and afterwards, in place of the front end's own, which breaks inside words and
// hides what exceeds 200 px; older ones do not show it in Nodes 2.0 and save it among the widget values.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { after, nodeOf } from "./frontend.js"
import { elastic } from "./height.js"

const LINE = "$$node-text-preview" // ComfyUI's name of the widget: where a node has one of this name, the front end writes into it
const MARGIN = 10 // CSS pixels that LiteGraph leaves around a DOM widget
const LINK = /(https?:\/\/[^\s,;]*[^\s,;.:)])/
const STYLE = `font: 12px/1.4 Inter, system-ui, sans-serif; color: var(--descrip-text, #999); white-space: pre-line; overflow-wrap: anywhere;
  user-select: text`

/** Shows a text on a node, in place of its earlier one. "" shows none. */
export function showLine(node, text) {
  const line = node.widgets?.find(widget => widget.name === LINE)
  if (line) line.value = text
}

function addLine(node) {
  const box = document.createElement("div")
  const element = box.appendChild(document.createElement("div"))
  element.style.cssText = STYLE
  let shown = ""
  let height = 0
  const heightOf = elastic()
  const fit = () => {
    height = element.offsetHeight || height // 0 while the node is out of sight
    if (!window.LiteGraph?.vueNodesMode) node.setSize([node.size[0], heightOf(node.size[1], node.computeSize()[1])])
    app.canvas?.setDirty(true, true)
  }
  const tall = () => (shown ? height + 2 * MARGIN : 0)
  const widget = node.addDOMWidget(LINE, "sa3_line", box, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getMinHeight: tall,
    getMaxHeight: tall,
    getValue: () => shown,
    setValue: text => {
      if (text === shown) return
      shown = text
      element.replaceChildren(...text.split(LINK).map((part, i) => (i % 2 ? link(part) : part)))
      fit() // before the front end draws, which grows the node by itself
    },
  })
  widget.serialize = false
  new ResizeObserver(fit).observe(element)
}

function link(url) {
  return Object.assign(document.createElement("a"), { href: url, textContent: url, target: "_blank", rel: "noopener", style: "color: inherit" })
}

app.registerExtension({
  name: "StableAudio3.ProgressLine",
  setup() {
    const on = (kind, read) =>
      api.addEventListener(kind, ({ detail }) => {
        const [id, text] = read(detail ?? {})
        const node = nodeOf(id)
        if (node?.comfyClass?.startsWith("SA3_")) showLine(node, text)
      })
    on("executing", id => [id, ""]) // what it said about an earlier run
    on("progress_text", ({ nodeId, text }) => [nodeId, text]) // also while another graph is on screen
    on("execution_error", detail => [detail.node_id, detail.exception_message]) // recent front ends hide it behind two clicks
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("SA3_")) return
    addLine(node) // at once: the front end must find it, and Nodes 2.0 of older ones renders no widget that is added later
    after(node, "onConfigure", () => {
      const preview = node.widgets?.find(widget => widget.name === "preview") // older versions saved the line in its place
      const choices = preview?.options?.values
      if (Array.isArray(choices) && !choices.includes(preview.value)) preview.value = choices[0]
    })
  },
})
