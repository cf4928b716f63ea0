// The widget that an editor edits, as regions on the recording's time line.

import { isLinked, promoted } from "./graph.js"
import { formatRegions, mergeRegions, parseRegions } from "./regions.js"

const SHORTEST = 0.01 // seconds of a region drawn with the mouse

class WidgetModel {
  constructor(node, name) {
    this.node = node
    this.name = name
  }

  get widget() {
    return widgetOf(this.node, this.name)
  }

  /** Whether the value comes from a link, which makes the widget read-only. */
  get linked() {
    return isLinked(this.node, this.name) && !promoted(this.node, this.name)
  }

  /** The value of the widget, which undo restores. */
  get state() {
    return valueOf(this.node, this.name)
  }

  set state(value) {
    const widget = promoted(this.node, this.name) ?? this.widget
    widget.value = value
    if (!widget.element) widget.callback?.(value) // setting a text widget already calls it
  }
}

/** Free regions in the text widget of SA3_InpaintMask. */
export class RegionsModel extends WidgetModel {
  free = true
  shortest = SHORTEST

  constructor(node) {
    super(node, "regions")
  }

  /** {regions, from, to, low, high}: the regions, the time line's ends, and how far an edge may be dragged. Throws RegionError. */
  read(duration) {
    const regions = mergeRegions(parseRegions(String(this.state ?? "")))
    const last = regions.at(-1)?.[1] ?? 0
    return { regions, from: 0, to: Math.max(duration, last) || 10, low: 0, high: Math.max(duration, last) }
  }

  /** The widget value for these regions. */
  stateOf(regions) {
    return formatRegions(mergeRegions(regions))
  }
}

/** The new part before or after the recording, from the seconds of SA3_Continue. Times before the recording are negative. */
export class ExtensionModel extends WidgetModel {
  free = false

  constructor(node) {
    super(node, "seconds")
  }

  get before() {
    return valueOf(this.node, "side") === "before"
  }

  get shortest() {
    return this.widget.options?.min ?? 0.1
  }

  /** The edge that can be dragged: 0 = start, 1 = end. */
  get edge() {
    return this.before ? 0 : 1
  }

  read(duration) {
    const seconds = Number(this.state)
    const most = this.widget.options?.max ?? 380
    const room = Math.min(seconds + Math.max(2, 0.2 * (duration + seconds)), most) // shown beyond the edge, so that it can be dragged outwards
    if (this.before) return { regions: [[-seconds, 0]], from: -room, to: duration || 1, low: -most, high: 0 }
    return { regions: [[duration, duration + seconds]], from: 0, to: duration + room, low: duration, high: duration + most }
  }

  stateOf([[start, end]]) {
    return Number((end - start).toFixed(3))
  }
}

function widgetOf(node, name) {
  return node.widgets.find(widget => widget.name === name)
}

/** A widget's value, outside the subgraph where it is promoted. */
function valueOf(node, name) {
  return (promoted(node, name) ?? widgetOf(node, name))?.value
}
