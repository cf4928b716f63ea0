// What has happened to a job in ComfyUI's queue, for events that were missed.

/**
 * The last event of a job as {type, detail}, null while the job waits. queue, history: the answers of /queue and /history/{id}, in this order.
 * type: execution_start while it runs; "gone" where the server knows no such job.
 */
export function lastEvent(id, queue, history) {
  const has = list => list.some(([, prompt]) => prompt === id)
  const event = (type, detail) => ({ type, detail: { ...detail, prompt_id: id } })
  if (has(queue.queue_pending)) return null
  if (has(queue.queue_running)) return event("execution_start")
  return event(...(history[id]?.status?.messages?.at(-1) ?? ["gone"]))
}
