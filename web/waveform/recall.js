// Finds what a cached node showed when it ran: ComfyUI before 0.33 does not send it again.

/**
 * The ui result of the newest run in which a node had the same inputs as in a prompt, null where there is none.
 * runs: entries of ComfyUI's history, the oldest first. prompt: the graph in API form.
 */
export function recall(runs, prompt, node) {
  const ids = Object.keys(prompt).filter(id => id.split(":").at(-1) === String(node.id) && prompt[id].class_type === node.type)
  if (ids.length !== 1) return null // of several nodes that contain the subgraph, each has a result of its own
  const wanted = JSON.stringify(made(prompt, ids[0]))
  const run = runs.findLast(({ prompt: [, , before], outputs }) => outputs[ids[0]] && JSON.stringify(made(before, ids[0])) === wanted)
  return run?.outputs[ids[0]] ?? null
}

/** What a node of a prompt is computed from: its class and inputs, and in place of links those of the nodes upstream. */
function made(prompt, id) {
  const { class_type, inputs } = prompt[id] ?? { inputs: {} }
  const values = Object.entries(inputs).map(([name, value]) => [name, isLink(prompt, value) ? [made(prompt, value[0]), value[1]] : value])
  return [class_type, values.sort(([a], [b]) => (a < b ? -1 : 1))]
}

function isLink(prompt, value) {
  return Array.isArray(value) && value.length === 2 && value[0] in prompt
}
