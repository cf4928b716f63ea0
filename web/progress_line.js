// Older front ends show a node's progress text in a widget and save its text among the widget values, where it is loaded into
// whichever widget a later version of the node has at that place. This extension does not save it, and repairs files that have it.

import { app } from "../../scripts/app.js"

const LINE = "$$node-text-preview" // ComfyUI's name of that widget

app.registerExtension({
  name: "StableAudio3.ProgressLine",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("SA3_")) return
    const { onSerialize, onConfigure } = node
    node.onSerialize = function (saved) {
      onSerialize?.call(this, saved)
      const at = this.widgets?.findIndex(widget => widget.name === LINE) ?? -1
      if (at >= 0 && this.widgets[at].serialize !== false && saved.widgets_values?.length > at) saved.widgets_values.splice(at, 1)
    }
    node.onConfigure = function (saved) {
      onConfigure?.call(this, saved)
      const preview = this.widgets?.find(widget => widget.name === "preview")
      const choices = preview?.options?.values
      if (Array.isArray(choices) && !choices.includes(preview.value)) preview.value = choices[0]
    }
  },
})
