// Values of widgets in new nodes and in graphs that were saved before a widget existed.

import { app } from "../../scripts/app.js"
import { after } from "./frontend.js"

app.registerExtension({
  name: "StableAudio3.WidgetValues",
  nodeCreated(node) {
    const widget = name => node.widgets?.find(one => one.name === name)
    if (node.comfyClass === "SA3_SAMEDecode") {
      // The noise is off by default, so another seed would only run the node again. A saved graph sets its own value after this.
      const control = widget("control_after_generate")
      if (control) control.value = "fixed"
    }
    if (node.comfyClass === "SA3_SaveAudio") {
      // Older graphs hold the value of the player's widget in this place.
      const quality = widget("quality")
      const chosen = quality?.value
      after(node, "onConfigure", () => {
        if (quality && !quality.options.values.includes(quality.value)) quality.value = chosen
      })
    }
  },
})
