// Finds what a cached node showed when it ran: ComfyUI before 0.33 does not send it again.

/**
 * The ui result of the newest run in which a node had the same inputs as in a prompt, null where there is none.
 * runs: entries of ComfyUI's history, the oldest first. prompt: the graph in API form.
 */
export function recall(runs, prompt, node) {
  const ids = Object.keys(prompt).filter(id => id.split(":").at(-1) === String(node.id) && prompt[id].class_type === node.type)
  if (ids.length !== 1) return null // of several nodes that contain the subgraph, each has a result of its own
  const wanted = computedFrom(prompt, ids[0])
  const run = runs.findLast(({ prompt: [, , before], outputs }) => outputs[ids[0]] && computedFrom(before, ids[0]) === wanted)
  return run?.outputs[ids[0]] ?? null
}

/** What a node of a prompt is computed from, as text: the classes and inputs of the node and of all nodes upstream. */
function computedFrom(prompt, id) {
  const nodes = new Map([[id, null]])
  for (const [at] of nodes) {
    const { class_type, inputs } = prompt[at] ?? { inputs: {} }
    const values = Object.entries(inputs).sort(([a], [b]) => (a < b ? -1 : 1))
    nodes.set(at, [class_type, values])
    for (const [, value] of values) if (isLink(prompt, value) && !nodes.has(String(value[0]))) nodes.set(String(value[0]), null)
  }
  return JSON.stringify([...nodes])
}

function isLink(prompt, value) {
  return Array.isArray(value) && value.length === 2 && value[0] in prompt
}
