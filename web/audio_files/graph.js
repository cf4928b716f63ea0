// Reads the graph inside an audio file, without loading the audio: in WAV chunk by chunk.

import { tagsOf } from "./tags.js"

const TYPES = ["audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"]
const OURS = "sa3 " // the chunk that SA3_SaveAudio writes: a JSON object with prompt, workflow and run record
const LARGEST = 64 * 2 ** 20 // bytes of a chunk that may hold a graph
const MOST = 1000 // chunks, or texts of one chunk, to read

/** Whether a File is one whose graph is read here, by its type or its name. */
export function isRead(file) {
  return TYPES.includes(file?.type) || /\.(wave?|mp3|opus|m4a)$/i.test(file?.name ?? "")
}

/** {workflow} or {prompt} as an object, null where there is none. Throws SyntaxError where this pack's own metadata is damaged. */
export async function graphOf(file) {
  if ((await text(file, 0, 4)) !== "RIFF" || (await text(file, 8, 4)) !== "WAVE") {
    const tags = await tagsOf(file)
    return pick(tags, "sa3" in tags)
  }
  let at = 12
  for (let count = 0; count < MOST && at + 8 <= file.size; count++) {
    const name = await text(file, at, 4)
    const size = (await view(file, at + 4, 4)).getUint32(0, true)
    if (name === OURS || name === "LIST") {
      const found = size <= LARGEST && graphIn(name, await view(file, at + 8, size), size)
      if (found) return found
    }
    at += 8 + size + (size % 2)
  }
  return null
}

function graphIn(name, content, size) {
  if (name === "LIST") {
    // INFO texts: other tools put a JSON object into a comment
    for (const words of infoTexts(content)) {
      try {
        const found = words.trimStart().startsWith("{") && pick(parse(words), false)
        if (found) return found
      } catch {
        // a comment that only looks like JSON
      }
    }
    return null
  }
  if (content.byteLength < size) throw new SyntaxError("the file ends inside the graph")
  return pick(parse(decode(content)), true)
}

/** The part of ComfyUI's metadata that it can open: the workflow, else the prompt. ours: throws SyntaxError where one is damaged. */
function pick(values, ours) {
  const [workflow, prompt] = ["workflow", "prompt"].map(key => {
    const value = values?.[key]
    if (typeof value !== "string") return value
    try {
      return parse(value)
    } catch (error) {
      if (ours) throw error
      return null // another tool's text
    }
  })
  if (Array.isArray(workflow?.nodes)) return { workflow }
  const nodes = prompt && typeof prompt === "object" ? Object.values(prompt) : []
  return nodes.length && nodes.every(node => typeof node?.class_type === "string" && node.inputs) ? { prompt } : null
}

/** Parses JSON as Python writes it: NaN and Infinity become null. */
function parse(words) {
  try {
    return JSON.parse(words)
  } catch {
    return JSON.parse(words.replace(/"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b/g, match => (match[0] === '"' ? match : "null")))
  }
}

function* infoTexts(content) {
  if (content.byteLength < 4 || decode(content, 0, 4) !== "INFO") return
  for (let at = 4, count = 0; count < MOST && at + 8 <= content.byteLength; ) {
    const size = content.getUint32(at + 4, true)
    yield decode(content, at + 8, size).replace(/\0+$/, "")
    at += 8 + size + (size % 2)
    count++
  }
}

function decode(content, start = 0, size = content.byteLength) {
  const length = Math.max(0, Math.min(size, content.byteLength - start))
  return new TextDecoder().decode(new Uint8Array(content.buffer, content.byteOffset + start, length))
}

async function view(file, start, size) {
  return new DataView(await file.slice(start, start + size).arrayBuffer())
}

async function text(file, start, size) {
  return decode(await view(file, start, size))
}
