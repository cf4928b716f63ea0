// What the extensions of this pack need from ComfyUI's front end.

import { app } from "../../scripts/app.js"

/** Calls `act` with the same `this` and arguments after each call of `object[name]`, which may be missing. */
export function after(object, name, act) {
  const original = object[name]
  object[name] = function (...values) {
    const result = original?.apply(this, values)
    act.apply(this, values)
    return result
  }
}

/** The front end's language without its region: "en", "zh", "ja", ... */
export function language() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").split("-")[0]
}

/** The entry of a table by language for the front end's language, else the English one. */
export function localized(table) {
  return table[language()] ?? table.en
}

/** The graph of the open workflow, around all subgraphs. */
export function rootGraph() {
  return app.rootGraph ?? app.graph
}

/** The id under which the server runs a node: "5", or "7:5" for a node inside the subgraph of node 7. */
export function executionId(node, graph = rootGraph()) {
  if (graph.nodes.includes(node)) return String(node.id)
  for (const outer of graph.nodes) {
    const inner = outer.subgraph && executionId(node, outer.subgraph)
    if (inner) return `${outer.id}:${inner}`
  }
  return null
}

/** The node that the server runs under an id of `executionId`. */
export function nodeOf(id) {
  const path = String(id).split(":")
  const last = path.pop()
  let graph = rootGraph()
  for (const part of path) graph = graph?.getNodeById(part)?.subgraph
  return graph?.getNodeById(last)
}
