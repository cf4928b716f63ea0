// SA3_Schedule shows only the numbers of the chosen schedule. Hidden widgets keep their values and are saved.

import { app } from "../../scripts/app.js"
import { after } from "./frontend.js"

// number: the schedules that read it
const READERS = {
  anchor_length: ["logsnr"],
  anchor_logsnr: ["logsnr"],
  rate: ["logsnr"],
  logsnr_end: ["logsnr"],
  min_length: ["flux", "full"],
  max_length: ["flux", "full"],
  alpha_min: ["flux"],
  alpha_max: ["flux"],
  base_shift: ["full"],
  max_shift: ["full"],
  use_sine: ["full"],
}

app.registerExtension({
  name: "StableAudio3.Schedule",
  nodeCreated(node) {
    if (node.comfyClass !== "SA3_Schedule") return
    const kind = node.widgets.find(widget => widget.name === "kind")
    const linked = name => node.inputs.some(input => input.widget?.name === name && input.link != null)
    const show = () => {
      for (const widget of node.widgets) {
        if (!READERS[widget.name]) continue
        widget.hidden = !READERS[widget.name].includes(kind.value) && !linked(widget.name) && !linked("kind")
        widget.computeSize = widget.hidden ? () => [0, -4] : undefined // older front ends leave room for hidden widgets; 4 is their margin
        if ("widgetId" in widget) widget.options.hidden = widget.hidden // Nodes 2.0 of older front ends would not show it again
      }
      app.canvas?.setDirty(true, true)
    }
    const fit = () => node.setSize([node.size[0], node.computeSize()[1]])
    show()
    fit()
    after(kind, "callback", () => {
      show()
      fit()
    })
    after(node, "onConnectionsChange", show)
    after(node, "onConfigure", show) // keeps the saved size
  },
})
