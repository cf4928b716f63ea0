// Finds what a cached node showed when it ran: ComfyUI before 0.33 does not send it again.

/**
 * The ui result of the newest run in which a node had the same inputs as in a prompt, null where there is none.
 * runs: entries of ComfyUI's history, the oldest first. prompt: the graph in API form.
 */
export function recall(runs, prompt, node) {
  const ids = Object.keys(prompt).filter(id => id.split(":").at(-1) === String(node.id) && prompt[id].class_type === node.type)
  if (ids.length !== 1) return null // of several nodes that contain the subgraph, each has a result of its own
  const run = runs.findLast(({ prompt: [, , before], outputs }) => outputs[ids[0]] && isSame(prompt, ids[0], before, ids[0]))
  return run?.outputs[ids[0]] ?? null
}

/**
 * Whether nodes of two prompts are computed from the same: class, inputs, and the nodes upstream, whatever their ids.
 * seen: the pairs that were compared; without them a chain of nodes with two links each takes forever.
 */
function isSame(prompt, id, before, other, seen = new Set()) {
  const pair = JSON.stringify([id, other])
  if (seen.has(pair)) return true
  seen.add(pair)
  const [node, old] = [prompt[id], before[other]]
  if (!node || node.class_type !== old?.class_type || Object.keys(node.inputs).length !== Object.keys(old.inputs).length) return false
  return Object.entries(node.inputs).every(([name, value]) => {
    const was = old.inputs[name]
    const links = [isLink(prompt, value), isLink(before, was)]
    if (links[0] && links[1]) return value[1] === was[1] && isSame(prompt, value[0], before, was[0], seen)
    return links[0] === links[1] && JSON.stringify(value) === JSON.stringify(was)
  })
}

function isLink(prompt, value) {
  return Array.isArray(value) && value.length === 2 && Object.hasOwn(prompt, value[0])
}
