// What the pointer is on, and what dragging it does to the regions.

import { lanesOf } from "./lanes.js"

const REACH = 6 // pixels on either side of an edge

/**
 * What lies at a point of the canvas: {kind: "overview" | "edge" | "region" | "empty", index, edge, time}.
 * index: of the region. edge: 0 its start, 1 its end. canvas: {width, height}.
 */
export function hit({ view, regions, selected, model }, { width, height }, x, y) {
  if (y >= lanesOf(height).overview[0]) return { kind: "overview", time: view.from + (x / width) * view.length }
  const time = view.toTime(x, width)
  const distance = at => Math.abs(view.toX(at, width) - x)
  const [nearest] = regions
    .flatMap((region, index) => region.map((at, edge) => ({ index, edge, away: distance(at) })))
    .filter(({ edge, away }) => away <= REACH && (model.free || edge === model.edge))
    .sort((a, b) => a.away - b.away || (a.index === selected ? -1 : 1))
  if (nearest) {
    const { index } = nearest
    const [start, end] = regions[index]
    const short = distance(regions[index][1 - nearest.edge]) <= REACH // both edges are within reach: each half drags its own
    const edge = short && model.free ? Number(x >= view.toX((start + end) / 2, width)) : nearest.edge
    return { kind: "edge", index, edge, time }
  }
  const index = regions.findIndex(([start, end]) => time >= start && time <= end)
  return index >= 0 ? { kind: "region", index, time } : { kind: "empty", time }
}

/** The CSS cursor over what hit() returned. free: regions can be moved. */
export function cursorFor({ kind }, free) {
  if (kind === "edge") return "ew-resize"
  if (kind === "region") return free ? "grab" : "text"
  return kind === "overview" ? "pointer" : "text"
}

/**
 * [regions, index of the dragged one or null] while the pointer is at a time.
 * drag: what hit() returned where the button went down, and `from`, the regions at that moment.
 * snapped(time): where an edge dragged to that time lands. bounds: [low, high] seconds that regions stay inside.
 */
export function dragged(drag, time, model, bounds, snapped) {
  const regions = drag.from.map(region => [...region])
  if (drag.kind === "empty" || (drag.kind === "region" && !model.free)) {
    if (!model.free) return [regions, null]
    const [start, end] = [snapped(drag.time), snapped(time)].sort((a, b) => a - b)
    return end - start < model.shortest ? [regions, null] : [[...regions, [start, end]], regions.length]
  }
  const region = regions[drag.index]
  if (drag.kind === "region") {
    const length = region[1] - region[0]
    const [low, high] = bounds
    const start = Math.min(Math.max(snapped(region[0] + time - drag.time), low), high - length)
    regions[drag.index] = [start, start + length]
  } else {
    const other = region[1 - drag.edge]
    region[drag.edge] = drag.edge ? Math.max(snapped(time), other + model.shortest) : Math.min(snapped(time), other - model.shortest)
  }
  return [regions, drag.index]
}
