// Makes an item of the batch the file of a Load Audio node: by a button, or by a drag onto the canvas.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const LOADER = "LoadAudio"
const DRAGGED = "application/x-sa3-item"
const GAP = 60 // graph units below the node
let dragged = null // the file of the last drag: what a drop itself says may come from another page

/** Copies a file {url, name} to ComfyUI's input folder and sets it at a Load Audio node: `node`, else a new one at `pos` of the graph. */
export async function useAsSource(file, graph, pos, node) {
  const found = await fetch(file.url)
  if (!found.ok) throw new Error(`${found.status} ${found.statusText}`)
  const sound = await found.blob()
  const body = new FormData()
  body.append("image", new File([sound], file.name, { type: "audio/wav" })) // the server's name for any file
  const answer = await api.fetchApi("/upload/image", { method: "POST", body })
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`)
  const { name, subfolder } = await answer.json()
  const path = subfolder ? `${subfolder}/${name}` : name
  if (!node) {
    node = window.LiteGraph.createNode(LOADER)
    node.pos = pos
    graph.add(node)
  }
  const widget = node.widgets.find(one => one.name === "audio")
  const values = widget.options?.values
  if (Array.isArray(values) && !values.includes(path)) values.push(path)
  widget.value = path
  widget.callback?.(path)
  app.canvas.selectItems?.([node])
  graph.change?.() // marks the workflow as modified
  return node
}

/** The Load Audio that a button below `node` sets: the selected one, else the only one, else none. And where a new one has room. */
export function sourceFor(node) {
  const loaders = node.graph.nodes.filter(one => one.type === LOADER)
  const selected = loaders.find(one => app.canvas.selectedItems?.has(one))
  return { node: selected ?? (loaders.length === 1 ? loaders[0] : null), pos: [node.pos[0], node.pos[1] + node.size[1] + GAP] }
}

/** Fills a drag: a file for the desktop and for audio programs, a copy for the canvas. */
export function startDrag(event, file) {
  const url = new URL(file.url, location.href).href
  event.dataTransfer.effectAllowed = "copy"
  event.dataTransfer.setData("DownloadURL", `audio/wav:${file.name}:${url}`)
  event.dataTransfer.setData("text/uri-list", url)
  event.dataTransfer.setData(DRAGGED, file.name)
  dragged = file
  event.stopPropagation()
}

/** Handles drops of items on the canvas before ComfyUI does, which would take the address for a file name. */
export function acceptDrops(report) {
  const ours = event => dragged && event.dataTransfer?.types?.includes(DRAGGED)
  document.addEventListener("dragover", event => ours(event) && event.preventDefault(), true)
  document.addEventListener(
    "drop",
    async event => {
      if (!ours(event)) return
      event.preventDefault()
      event.stopImmediatePropagation()
      const file = dragged
      dragged = null
      if (event.target.closest?.(".sa3-batch")) return // back where it came from
      const { graph } = app.canvas
      const pos = app.canvas.convertEventToCanvasOffset(event)
      const under = graph.getNodeOnPos(...pos)
      await report(useAsSource(file, graph, pos, under?.type === LOADER ? under : null))
    },
    true,
  )
}

/** Puts a text on the clipboard, also where the page has no secure address. Returns whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const field = Object.assign(document.createElement("textarea"), { value: text })
    document.body.append(field)
    field.select()
    const copied = document.execCommand("copy")
    field.remove()
    return copied
  }
}
