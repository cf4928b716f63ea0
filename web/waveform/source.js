// Finds the audio to show on a node: the file of a loader upstream, which needs no run, else the node's own result of its last run.

const KEY = "sa3_waveform" // of the node's ui result, written in nodes/comfyui/preview.py
const SUBGRAPH_INPUT = -10 // LiteGraph's id of the input node of a subgraph
const MUTED = [2, 4] // modes of nodes that do not run: never, bypassed
const BYPASSED = 4
const LATENT_OF = ["SA3_SAMEEncode", "SA3_InpaintMask"] // their LATENT output encodes their AUDIO input, or comes from their LATENT input

/** {files: [{filename, subfolder, type}, ...], missing}: the best file first; missing: what is needed for one, "link" or "run". outputs: ui results by node id. */
export function findSource(node, outputs) {
  const linked = isLinked(node, "audio")
  const file = upstream(node)
  const shown = linked ? shownFor(node, outputs, file) : null
  return { files: [file, shown].filter(Boolean), missing: linked ? "run" : "link" }
}

/** {shown, of}: the audio file of a node's ui result, and the file upstream at that time. The result is not shown for another file. */
export function resultOf(node, output) {
  const shown = shownFile(output)
  return shown && { shown, of: JSON.stringify(upstream(node)) }
}

/** The URL of a file on the server. */
export function fileUrl(api, { filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

export function isLinked(node, name) {
  return (node.inputs ?? []).some(input => input.name === name && input.link != null)
}

function shownFor(node, outputs, file) {
  if (node.sa3Result) return node.sa3Result.of === JSON.stringify(file) ? node.sa3Result.shown : null
  const places = [String(node.id), `${node.graph?.id}:${node.id}`]
  return places.map(place => shownFile(outputs?.[place])).find(Boolean) ?? null
}

function shownFile(output) {
  return output?.[KEY]?.[0] ?? null
}

function upstream(node) {
  if (isLinked(node, "audio")) return follow(node, slotOf(node, "audio"))
  return isLinked(node, "latent") ? follow(node, slotOf(node, "latent")) : null
}

function slotOf(node, name) {
  return node.inputs.findIndex(input => input.name === name)
}

/** The loader's file that an input's link leads to; null where a run is needed to know the audio. */
function follow(node, slot, seen = new Set()) {
  const input = node?.inputs?.[slot]
  const link = input?.link == null ? null : linkOf(node.graph, input.link)
  if (!link || seen.has(link)) return null
  seen.add(link)
  if (link.origin_id === SUBGRAPH_INPUT) return follow(holderOf(node.graph), link.origin_slot, seen)
  return fileOf(node.graph.getNodeById(link.origin_id), link.origin_slot, seen)
}

function fileOf(source, slot, seen) {
  if (!source) return null
  if (source.subgraph) return inside(source, slot, seen)
  const through = name => (isLinked(source, name) ? follow(source, slotOf(source, name), seen) : null)
  if (LATENT_OF.includes(source.type) && source.mode !== BYPASSED) return through("audio") ?? through("latent")
  if (source.isVirtualNode || source.type === "Reroute" || source.mode === BYPASSED) return follow(source, passes(source, slot), seen)
  if (source.type !== "LoadAudio" || MUTED.includes(source.mode) || isLinked(source, "audio")) return null
  return annotated(source.widgets?.find(widget => widget.name === "audio")?.value)
}

/** The input that a bypassed node passes to an output: the first linked one of the same type. */
function passes(node, slot) {
  const type = node.outputs?.[slot]?.type
  const at = node.inputs?.findIndex(input => input.type === type && input.link != null) ?? -1
  return at >= 0 ? at : 0
}

function inside(holder, slot, seen) {
  const id = holder.subgraph.outputs?.[slot]?.linkIds?.[0]
  const link = id == null ? null : linkOf(holder.subgraph, id)
  if (!link || seen.has(link)) return null
  seen.add(link)
  if (link.origin_id === SUBGRAPH_INPUT) return follow(holder, link.origin_slot, seen)
  return fileOf(holder.subgraph.getNodeById(link.origin_id), link.origin_slot, seen)
}

/** The node that contains a subgraph. */
function holderOf(graph, around = graph?.rootGraph) {
  for (const node of around?.nodes ?? []) {
    if (!node.subgraph) continue
    if (node.subgraph === graph) return node
    const deeper = holderOf(graph, node.subgraph)
    if (deeper) return deeper
  }
  return null
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null
}

/** {filename, subfolder, type} of a loader's value "folder/name.wav [output]". */
function annotated(value) {
  if (typeof value !== "string" || !value) return null
  const [, path, type] = value.match(/^(.*?)(?: \[(input|output|temp)\])?$/s)
  const cut = path.lastIndexOf("/")
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type: type ?? "input" }
}
