// Finds the audio to show on a node: the file of a loader upstream, which needs no run, else what the last run of its node showed.

import { downstream, isLinked, runs, upstream } from "./graph.js"

const KEY = "sa3_waveform" // of the node's ui result, written in nodes/comfyui/preview.py
const KEPT = "sa3_shown" // property of a node: {shown, of} of its last run, saved with the workflow
const EDITOR = "SA3_InpaintMask"
const sourceAtRun = new Map() // name of a shown file -> what `of` was then, for nodes that undo gives older properties

/**
 * {files: [{filename, subfolder, type}, ...], missing}: the best file first; missing: what is needed for one, "link" or "run".
 * outputs: ui results by node id. A node without AUDIO shows that of the editor upstream along its LATENT.
 */
export function findSource(node, outputs) {
  const file = loaded(node)
  const editor = isLinked(node, "audio") ? node : upstream(node, "latent", editorOf)
  const shown = editor && shownFor(editor, outputs, file)
  return { files: [file, shown].filter(Boolean), missing: editor ? "run" : "link" }
}

/** Keeps the audio file of a node's ui result, and the file upstream at that time: the result is not shown for another file. */
export function keepResult(node, output) {
  const shown = shownFile(output)
  const of = JSON.stringify(loaded(node))
  if (!shown) return delete node.properties[KEPT]
  sourceAtRun.set(shown.filename, of)
  node.properties[KEPT] = { shown, of }
}

/**
 * The audio file that the last run made of a node's LATENT, as the nearest node downstream shows it, spliced where there is a splice.
 * null where there is none.
 */
export function findResult(node, outputs) {
  const latents = (node.outputs ?? []).flatMap((output, slot) => (output.type === "LATENT" ? [[node, slot, false]] : []))
  const seen = new Set([node])
  let whole = null
  for (let at = 0; at < latents.length; at++) {
    const [source, slot, spliced] = latents[at]
    for (const [target, input] of downstream(source, slot)) {
      if (seen.has(target) || !runs(target) || (target.type === "SA3_Splice" && input !== "generated")) continue
      seen.add(target)
      const file = places(target).map(place => outputs?.[place]?.audio?.[0]).find(Boolean)
      if (file && spliced) return file
      whole ??= file
      const splices = target.type === "SA3_Splice"
      target.outputs?.forEach((output, index) => {
        const carries = splices ? index === 0 : ["LATENT", "AUDIO", "*"].includes(output.type)
        if (carries) latents.push([target, index, spliced || splices])
      })
    }
  }
  return whole
}

/** The URL of a file on the server. */
export function fileUrl(api, { filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

function shownFor(node, outputs, file) {
  const kept = node.properties?.[KEPT]
  const shown = kept ? kept.shown : places(node).map(place => shownFile(outputs?.[place])).find(Boolean)
  const of = kept ? kept.of : sourceAtRun.get(shown?.filename)
  return shown && (of === undefined || of === JSON.stringify(file)) ? shown : null
}

function shownFile(output) {
  return output?.[KEY]?.[0] ?? null
}

/** The possible keys of a node's ui result. Inside a subgraph the id alone is that of a node outside. */
function places({ id, graph }) {
  const inside = `${graph?.id}:${id}`
  return (graph?.rootGraph ?? graph) === graph ? [String(id), inside] : [inside]
}

/** The loader's file that a node's recording comes from; null where a run is needed to know the audio. */
function loaded(node) {
  return upstream(node, isLinked(node, "audio") ? "audio" : "latent", fileOf)
}

function fileOf(source) {
  if (source.type !== "LoadAudio" || !runs(source) || isLinked(source, "audio")) return null
  return annotated(source.widgets?.find(widget => widget.name === "audio")?.value)
}

function editorOf(source) {
  return source.type === EDITOR && runs(source) && isLinked(source, "audio") ? source : null
}

/** {filename, subfolder, type} of a loader's value "folder/name.wav [output]". */
function annotated(value) {
  if (typeof value !== "string" || !value) return null
  const [, path, type] = value.match(/^(.*?)(?: \[(input|output|temp)\])?$/s)
  const cut = path.lastIndexOf("/")
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type: type ?? "input" }
}
