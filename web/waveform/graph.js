// Walks along the links of a graph, through reroutes, bypassed nodes and the borders of subgraphs.

const SUBGRAPH_INPUT = "-10" // LiteGraph's ids of the input and output node of a subgraph, numbers before front end 1.58
const SUBGRAPH_OUTPUT = "-20"
const MUTED = [2, 4] // modes of nodes that do not run: never, bypassed
const BYPASSED = 4
const LATENT_OF = ["SA3_SAMEEncode", "SA3_InpaintMask"] // their LATENT output encodes their AUDIO input, without one it comes from LATENT

export function isLinked(node, name) {
  return (node.inputs ?? []).some(input => input.name === name && input.link != null)
}

export function runs(node) {
  return !MUTED.includes(node.mode)
}

/** The first value that `find(source)` returns for a node upstream of an input; null where there is none. */
export function upstream(node, name, find) {
  return isLinked(node, name) ? follow(node, slotOf(node, name), find, new Set()) : null
}

/** [[node, name of its input], ...] that an output leads to. */
export function downstream(node, slot) {
  return (node.outputs?.[slot]?.links ?? []).flatMap(id => ends(node.graph, linkOf(node.graph, id)))
}

/**
 * The widget outside a subgraph whose value an input of a node inside takes: where the subgraph promotes the input.
 * null where it does not, and where several nodes contain the subgraph, each with a value of its own.
 */
export function promoted(node, name) {
  const input = node.inputs?.find(one => one.name === name)
  const link = input?.link == null ? null : linkOf(node.graph, input.link)
  const holders = String(link?.origin_id) === SUBGRAPH_INPUT ? holdersOf(node.graph) : []
  if (holders.length !== 1) return null
  const [holder] = holders
  const outer = holder.inputs?.[link.origin_slot]
  if (outer?.link != null) return promoted(holder, outer.name)
  return (outer && holder.getWidgetFromSlot?.(outer)) ?? null
}

function slotOf(node, name) {
  return node.inputs.findIndex(input => input.name === name)
}

function follow(node, slot, find, seen) {
  const input = node?.inputs?.[slot]
  const link = input?.link == null ? null : linkOf(node.graph, input.link)
  return origin(node?.graph, link, () => holdersOf(node.graph)[0], find, seen)
}

/** holder(): the node around the link's graph. */
function origin(graph, link, holder, find, seen) {
  if (!link || seen.has(link)) return null
  seen.add(link)
  if (String(link.origin_id) === SUBGRAPH_INPUT) return follow(holder(), link.origin_slot, find, seen)
  return at(graph.getNodeById(link.origin_id), link.origin_slot, find, seen)
}

function at(source, slot, find, seen) {
  if (!source) return null
  const found = find(source)
  if (found) return found
  if (source.subgraph) {
    const id = source.subgraph.outputs?.[slot]?.linkIds?.[0]
    return id == null ? null : origin(source.subgraph, linkOf(source.subgraph, id), () => source, find, seen)
  }
  if (LATENT_OF.includes(source.type) && source.mode !== BYPASSED) {
    return follow(source, slotOf(source, isLinked(source, "audio") ? "audio" : "latent"), find, seen)
  }
  if (source.isVirtualNode || source.type === "Reroute" || source.mode === BYPASSED) return follow(source, passes(source, slot), find, seen)
  return null
}

/** The input that a bypassed node passes to an output: the first linked one of the same type. */
function passes(node, slot) {
  const type = node.outputs?.[slot]?.type
  const index = node.inputs?.findIndex(input => input.type === type && input.link != null) ?? -1
  return index >= 0 ? index : 0
}

function ends(graph, link) {
  if (!link) return []
  if (String(link.target_id) === SUBGRAPH_OUTPUT) return holdersOf(graph).flatMap(holder => downstream(holder, link.target_slot))
  const target = graph.getNodeById(link.target_id)
  if (target?.subgraph) {
    const ids = target.subgraph.inputs?.[link.target_slot]?.linkIds ?? []
    return ids.flatMap(id => ends(target.subgraph, linkOf(target.subgraph, id)))
  }
  return target ? [[target, target.inputs?.[link.target_slot]?.name]] : []
}

/** The nodes that contain a subgraph. */
function holdersOf(graph, around = graph?.rootGraph) {
  return (around?.nodes ?? []).filter(node => node.subgraph).flatMap(node => (node.subgraph === graph ? [node] : holdersOf(graph, node.subgraph)))
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null
}
