// A WAV that holds a graph opens it, as ComfyUI's own formats do. Every other file goes on to ComfyUI untouched.

import { app } from "../../scripts/app.js"
import { spoken } from "./frontend.js"
import { graphOf, isWav } from "./wav/graph.js"

const WORDS = {
  en: name => `The graph inside ${name} is damaged.`,
  zh: name => `${name} 内的工作流已损坏。`,
  ja: name => `${name} 内のワークフローが壊れています。`,
}

app.registerExtension({
  name: "StableAudio3.DropWAV",
  setup() {
    const handleFile = app.handleFile
    app.handleFile = async function (file, ...rest) {
      const found = isWav(file) ? await read(file) : null
      if (!found) return handleFile.call(this, file, ...rest)
      const name = file.name.replace(/\.\w+$/, "")
      const [source, options] = rest
      try {
        if (found.prompt) await app.loadApiJson(found.prompt, name)
        else await app.loadGraphData(found.workflow, true, true, name, { openSource: source, deferWarnings: options?.deferWarnings })
      } catch (error) {
        complain(file, error)
      }
    }
  },
})

async function read(file) {
  try {
    return await graphOf(file)
  } catch (error) {
    complain(file, error)
    return null
  }
}

function complain(file, error) {
  const summary = spoken(WORDS)(file.name)
  app.extensionManager?.toast?.add({ severity: "warn", summary, detail: String(error?.message ?? error), life: 8000 })
}
