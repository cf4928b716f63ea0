// Dropping a WAV, MP3, Opus or M4A that contains a graph opens the graph, as with ComfyUI's own formats. ComfyUI handles all other files.

import { app } from "../../scripts/app.js"
import { localized } from "./frontend.js"
import { graphOf, isRead } from "./audio_files/graph.js"

const DAMAGED = {
  en: name => `The graph inside ${name} is damaged.`,
  zh: name => `${name} 内的工作流已损坏。`,
  ja: name => `${name} 内のワークフローが壊れています。`,
}

app.registerExtension({
  name: "StableAudio3.DropAudio",
  setup() {
    const handleFile = app.handleFile
    app.handleFile = async function (file, ...rest) {
      const found = isRead(file) ? await read(file) : null
      if (!found) return handleFile.call(this, file, ...rest)
      const name = file.name.replace(/\.\w+$/, "")
      const [source, options] = rest
      try {
        if (found.prompt) await app.loadApiJson(found.prompt, name)
        else await app.loadGraphData(found.workflow, true, true, name, { openSource: source, deferWarnings: options?.deferWarnings })
      } catch (error) {
        reportDamage(file, error)
      }
    }
  },
})

async function read(file) {
  try {
    return await graphOf(file)
  } catch (error) {
    reportDamage(file, error)
    return null
  }
}

function reportDamage(file, error) {
  const summary = localized(DAMAGED)(file.name)
  app.extensionManager?.toast?.add({ severity: "warn", summary, detail: String(error?.message ?? error), life: 8000 })
}
