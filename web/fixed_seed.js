// The seed of new nodes whose noise is off by default stays fixed: a new value after each run would only run the node again.

import { app } from "../../scripts/app.js"

app.registerExtension({
  name: "StableAudio3.FixedSeed",
  nodeCreated(node) {
    const control = node.comfyClass === "SA3_SAMEDecode" && node.widgets?.find(widget => widget.name === "control_after_generate")
    if (control) control.value = "fixed" // a saved graph sets its own value after this
  },
})
