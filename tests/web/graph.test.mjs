// The graph inside a WAV, and the audio of a node in a graph.

import assert from "node:assert/strict"
import { test } from "node:test"
import { graphOf, isRead } from "../../web/audio_files/graph.js"
import { promoted } from "../../web/waveform/graph.js"
import { recall } from "../../web/waveform/recall.js"
import { fileUrl, findResult, findSource, keepResult } from "../../web/waveform/source.js"

const bytes = value => (typeof value === "string" ? new TextEncoder().encode(value) : value)
const join = parts => Uint8Array.from(parts.flatMap(part => [...bytes(part)]))
const u32 = value => new Uint8Array(Uint32Array.of(value).buffer)
const chunk = (name, content) => join([name, u32(bytes(content).length), content, new Uint8Array(bytes(content).length % 2)])
const riff = (...chunks) => {
  const body = join(["WAVE", chunk("fmt ", new Uint8Array(16)), chunk("data", new Uint8Array(1600)), ...chunks])
  return join(["RIFF", u32(body.length), body])
}
const read = content => graphOf(new Blob([content]))

const WORKFLOW = { nodes: [{ id: 1, type: "SA3_EmptyLatent" }] }
const PROMPT = { 1: { class_type: "SA3_ModelLoader", inputs: {} } }
const comment = words => chunk("LIST", join(["INFO", chunk("ICMT", words)]))

test("graphs: our own chunk, a comment, text inside text, the workflow before the prompt", async () => {
  assert.deepEqual(await read(riff(chunk("sa3 ", JSON.stringify({ workflow: WORKFLOW, prompt: PROMPT })))), { workflow: WORKFLOW })
  assert.deepEqual(await read(riff(chunk("sa3 ", JSON.stringify({ prompt: PROMPT })))), { prompt: PROMPT })
  assert.deepEqual(await read(riff(comment(JSON.stringify({ workflow: JSON.stringify(WORKFLOW) })))), { workflow: WORKFLOW })
  assert.deepEqual(await read(riff(comment("a plain comment"), chunk("sa3 ", JSON.stringify({ prompt: PROMPT })))), { prompt: PROMPT })
})

test("chunks of odd length are padded", async () => {
  assert.deepEqual(await read(riff(chunk("junk", "odd"), chunk("sa3 ", JSON.stringify({ prompt: PROMPT })))), { prompt: PROMPT })
})

test("NaN and Infinity as Python writes them, except inside texts", async () => {
  const node = '{"class_type": "A", "inputs": {"a": NaN, "b": -Infinity, "c": "NaN, \\"Infinity"}}'
  const { prompt } = await read(riff(chunk("sa3 ", `{"x": NaN, "prompt": {"1": ${node}}}`)))
  assert.deepEqual(prompt[1].inputs, { a: null, b: null, c: 'NaN, "Infinity' })
})

const WITHOUT = {
  "an empty file": "",
  "a torn header": "RIFF",
  "no graph": riff(),
  "a size beyond reason": "RIFF\xff\xff\xff\xffWAVEsa3 ",
  "a graph without nodes": riff(chunk("sa3 ", '{"workflow": {"nodes": 3}}')),
  "null": riff(chunk("sa3 ", "null")),
  "a node without a class": riff(chunk("sa3 ", '{"prompt": {"1": null}}')),
  "a torn comment": riff(chunk("LIST", join(["INFOICMT", u32(0xffffffff), "{}"]))),
  "a comment that only looks like JSON": riff(comment("{broken")),
  "empty chunks without end": riff(...Array(2000).fill(chunk("junk", ""))),
  "NULs inside a comment": riff(comment("{" + "\0".repeat(100_000) + "}")),
  "empty comments without end": riff(chunk("LIST", join(["INFO", new Uint8Array(100_000)]))),
  "a chunk above the limit": join(["RIFF", u32(0xffffffff), "WAVEsa3 ", u32(0xffffffff), "{"]),
}

for (const [name, content] of Object.entries(WITHOUT)) {
  test(`no graph in a WAV with ${name}`, { timeout: 5000 }, async () => assert.equal(await read(content), null))
}

test("a damaged chunk of ours is an error", async () => {
  await assert.rejects(read(riff(chunk("sa3 ", "not json"))), SyntaxError)
  await assert.rejects(read(join(["RIFF", u32(0xffffffff), "WAVEsa3 ", u32(0x01ffffff), "{"])), SyntaxError)
})

test("open quotes without end are refused at once", { timeout: 5000 }, async () => {
  await assert.rejects(read(riff(chunk("sa3 ", "x " + '"\\'.repeat(50_000)))), SyntaxError)
})

const frame = (name, words) => join(["TXXX", [0, 0, 0, name.length + words.length + 2, 0, 0, 3], name, [0], words])
const id3 = content => join(["ID3", [4, 0, 0, 0, 0, content.length >> 7, content.length & 127], content])

test("a tag with the words of a prompt is not a damaged graph; a torn graph is", async () => {
  assert.equal(await read(id3(frame("prompt", "a sad song"))), null)
  await assert.rejects(read(id3(frame("prompt", '{"1": {'))), SyntaxError)
})

test("files that are read here, by type or name", () => {
  for (const file of [{ type: "audio/x-wav" }, { name: "a.WAV" }, { name: "b.wave", type: "" }, { name: "c.opus" }, { name: "d.M4A" }]) {
    assert.ok(isRead(file))
  }
  for (const file of [undefined, {}, { name: "a.wav.png" }, { name: "a.flac", type: "audio/flac" }]) assert.ok(!isRead(file))
})

const DAMAGED_TAGS = {
  "an ID3 tag beyond the file": join(["ID3", [4, 0, 0, 127, 127, 127, 127], "TXXX", [0, 0, 127, 127]]),
  "an ID3 frame without a text": join(["ID3", [4, 0, 0, 0, 0, 0, 12], "TXXX", [0, 0, 0, 2, 0, 0, 3, 65]]),
  "an Ogg page without an end": join(["OggS", new Uint8Array(22), [255], new Uint8Array(255).fill(255)]),
  "Ogg comments beyond the packet": join([
    ...["OggS", new Uint8Array(22), [0], "OggS", new Uint8Array(22), [1, 20], "OpusTags", u32(0xffffffff), new Uint8Array(8)],
  ]),
  "an MP4 of boxes without a size": join([[0, 0, 0, 0], "ftyp", new Uint8Array(8000)]),
  "an MP4 box beyond the file": join([[0, 0, 0, 8], "ftyp", [255, 255, 255, 255], "moov", [0, 0, 0, 99], "udta"]),
}

for (const [name, content] of Object.entries(DAMAGED_TAGS)) {
  test(`no graph in ${name}`, async () => assert.equal(await read(content), null))
}

const txxx = (name, value) => {
  const content = join([[3], name, [0], value])
  return join(["TXXX", [0, 0, content.length >> 7, content.length & 127], [0, 0], content])
}
const mp3 = (...frames) => {
  const body = join(frames)
  return join(["ID3", [4, 0, 0], [21, 14, 7, 0].map(bits => (body.length >> bits) & 127), body])
}

test("a plain text named prompt in another tool's MP3 is no damaged graph; this pack's is reported", async () => {
  assert.equal(await read(mp3(txxx("prompt", "a calm piano"))), null)
  const both = mp3(txxx("prompt", "a calm piano"), txxx("workflow", JSON.stringify(WORKFLOW)))
  assert.deepEqual(await read(both), { workflow: WORKFLOW })
  await assert.rejects(read(mp3(txxx("prompt", "{torn"), txxx("sa3", "{}"))), SyntaxError)
})

test("entries without end are not all read", async () => {
  const graph = JSON.stringify(WORKFLOW)
  assert.equal(await read(mp3(...Array(10_001).fill(txxx("a", "")), txxx("workflow", graph))), null)
  const texts = Array(1001).fill(chunk("ICMT", ""))
  assert.equal(await read(riff(chunk("LIST", join(["INFO", ...texts, chunk("ICMT", JSON.stringify({ workflow: graph }))])))), null)
})

/** A graph of litegraph's form: nodes by id with their inputs as {name: origin id}; outputs are slot 0. */
function graphWith(nodes) {
  const graph = { nodes: [], links: {}, getNodeById: id => graph.nodes.find(node => node.id === Number(id)) ?? null }
  graph.rootGraph = graph
  for (const [id, { inputs = {}, ...rest }] of Object.entries(nodes)) {
    const node = { id: Number(id), graph, widgets: [], inputs: [], outputs: [{ type: "AUDIO" }], mode: 0, properties: {}, ...rest }
    for (const [name, origin] of Object.entries(inputs)) {
      const link = origin === null ? null : Object.keys(graph.links).length + 1
      if (link) graph.links[link] = { id: link, origin_id: origin, origin_slot: 0, target_id: node.id, target_slot: node.inputs.length }
      node.inputs.push({ name, link, type: name === "latent" || name === "samples" ? "LATENT" : "AUDIO" })
    }
    graph.nodes.push(node)
  }
  for (const { id, origin_id } of Object.values(graph.links)) {
    const output = graph.getNodeById(origin_id)?.outputs[0]
    if (output) output.links = [...(output.links ?? []), id]
  }
  return graph
}

const loader = (value, more = {}) => ({ type: "LoadAudio", widgets: [{ name: "audio", value }], ...more })
const FILE = { filename: "a.wav", subfolder: "", type: "input" }
const editorOf = graph => graph.nodes.at(-1)
const source = (nodes, outputs = {}) => findSource(editorOf(graphWith(nodes)), outputs)

test("the file of the loader, directly and through reroutes and bypassed nodes", () => {
  assert.deepEqual(source({ 1: loader("a.wav"), 9: { inputs: { audio: 1 } } }), { files: [FILE], missing: "run" })
  assert.deepEqual(source({ 1: loader("a.wav"), 2: { type: "Reroute", inputs: { "": 1 } }, 9: { inputs: { audio: 2 } } }).files, [FILE])
  assert.deepEqual(source({ 1: loader("a.wav"), 2: { type: "X", mode: 4, inputs: { audio: 1 } }, 9: { inputs: { audio: 2 } } }).files, [FILE])
})

test("the audio of the latent, when no audio is linked", () => {
  const nodes = { 1: loader("a.wav"), 2: { type: "SA3_SAMEEncode", inputs: { audio: 1 } }, 9: { inputs: { audio: null, latent: 2 } } }
  assert.deepEqual(source(nodes), { files: [FILE], missing: "link" })
  const mask = { type: "SA3_InpaintMask", outputs: [{ type: "LATENT" }] }
  const masked = mode => ({ ...nodes, 3: loader("b.wav"), 4: { ...mask, mode, inputs: { audio: 3, latent: 2 } }, 9: { inputs: { latent: 4 } } })
  assert.equal(source(masked(0)).files[0].filename, "b.wav")
  assert.equal(source(masked(4)).files[0].filename, "a.wav", "a bypassed node passes its latent on")
})

test("no file before a run: a node that computes, a muted loader, a linked loader, a loop, nothing", () => {
  assert.deepEqual(source({ 1: loader("a.wav"), 2: { type: "X", inputs: { audio: 1 } }, 9: { inputs: { audio: 2 } } }), { files: [], missing: "run" })
  assert.deepEqual(source({ 1: loader("a.wav", { mode: 2 }), 9: { inputs: { audio: 1 } } }).files, [])
  assert.deepEqual(source({ 1: { type: "X" }, 2: loader("a.wav", { inputs: { audio: 1 } }), 9: { inputs: { audio: 2 } } }).files, [])
  assert.deepEqual(source({ 1: { type: "Reroute", inputs: { "": 2 } }, 2: { type: "Reroute", inputs: { "": 1 } }, 9: { inputs: { audio: 1 } } }).files, [])
  assert.deepEqual(source({ 9: { inputs: { audio: null } } }), { files: [], missing: "link" })
})

test("a loader inside a subgraph, and an editor inside one", () => {
  const inner = graphWith({ 1: loader("a.wav") })
  inner.outputs = [{ linkIds: [5] }]
  inner.links[5] = { id: 5, origin_id: 1, origin_slot: 0 }
  assert.deepEqual(source({ 2: { subgraph: inner }, 9: { inputs: { audio: 2 } } }).files, [FILE])
  const held = graphWith({ 9: { inputs: { audio: -10 } } })
  held.rootGraph = graphWith({ 1: loader("a.wav"), 2: { subgraph: held, inputs: { audio: 1 } } })
  assert.deepEqual(findSource(editorOf(held), {}).files, [FILE])
})

test("annotated values of a loader", () => {
  const file = value => source({ 1: loader(value), 9: { inputs: { audio: 1 } } }).files[0]
  assert.deepEqual(file("a/b/c d.wav [output]"), { filename: "c d.wav", subfolder: "a/b", type: "output" })
  assert.deepEqual(file("a [x].wav"), { filename: "a [x].wav", subfolder: "", type: "input" })
  for (const value of ["", undefined, 3]) assert.equal(file(value), undefined)
})

test("the result of a run, shown only for the file that it was computed from", () => {
  const shown = { filename: "t.wav", subfolder: "", type: "temp" }
  const node = editorOf(graphWith({ 1: loader("a.wav"), 9: { inputs: { audio: 1 } } }))
  assert.deepEqual(findSource(node, { 9: { sa3_waveform: [shown] } }).files, [FILE, shown])
  keepResult(node, { sa3_waveform: [shown] })
  assert.deepEqual(findSource(node, {}).files, [FILE, shown])
  const saved = JSON.parse(JSON.stringify(node.properties))
  node.properties = {} // by an undo: the front end still has the result
  assert.deepEqual(findSource(node, { 9: { sa3_waveform: [shown] } }).files, [FILE, shown])
  node.graph.nodes[0].widgets[0].value = "b.wav"
  for (node.properties of [saved, {}]) {
    assert.deepEqual(findSource(node, { 9: { sa3_waveform: [shown] } }).files, [{ ...FILE, filename: "b.wav" }])
  }
  node.properties = saved
  keepResult(node, null)
  assert.deepEqual(node.properties, {})
})

test("the second of two editors shows what the first shows, also after a run", () => {
  const shown = { filename: "computed.wav", subfolder: "", type: "temp" }
  const mask = { type: "SA3_InpaintMask", outputs: [{ type: "LATENT" }] }
  const nodes = { 0: loader("a.wav"), 1: { type: "X", inputs: { audio: 0 } }, 2: { type: "SA3_SAMEEncode", inputs: { audio: 0 } } }
  nodes[3] = { ...mask, inputs: { audio: 1, latent: 2 } }
  const graph = graphWith({ ...nodes, 4: { ...mask, inputs: { latent: 3 } }, 9: { ...mask, inputs: { audio: null, latent: 4 } } })
  assert.deepEqual(findSource(editorOf(graph), {}), { files: [], missing: "run" })
  keepResult(graph.getNodeById(3), { sa3_waveform: [shown] })
  assert.deepEqual(findSource(editorOf(graph), {}), { files: [shown], missing: "run" })
  graph.getNodeById(3).mode = 4
  assert.deepEqual(findSource(editorOf(graph), {}), { files: [FILE], missing: "link" })
})

test("the result of a run, spliced where there is a splice", () => {
  const audio = name => ({ audio: [{ filename: name, subfolder: "", type: "output" }] })
  const splice = { type: "SA3_Splice", outputs: [{ type: "AUDIO" }, { type: "AUDIO" }] }
  const graph = graphWith({
    1: loader("a.wav"),
    2: { type: "SA3_InpaintMask", outputs: [{ type: "LATENT" }], inputs: { audio: 1 } },
    3: { type: "SA3_Sampler", outputs: [{ type: "LATENT" }], inputs: { latent: 2 } },
    4: { type: "SA3_SAMEDecode", inputs: { latent: 3 } },
    5: { type: "SaveAudio", outputs: [], inputs: { audio: 4 } },
    6: { ...splice, inputs: { original: 1, generated: 4 } },
    7: { type: "SaveAudio", outputs: [], inputs: { audio: 6 } },
    8: { type: "SaveAudio", outputs: [], inputs: { audio: 1 } },
  })
  const node = graph.getNodeById(2)
  const found = outputs => findResult(node, outputs)?.filename ?? null
  assert.equal(found({}), null)
  assert.equal(found({ 8: audio("the recording") }), null)
  assert.equal(found({ 5: audio("whole") }), "whole")
  assert.equal(found({ 5: audio("whole"), 7: audio("spliced") }), "spliced")
  graph.getNodeById(7).mode = 2
  assert.equal(found({ 7: audio("muted") }), null)
})

test("what a cached node showed when it ran with the same inputs", () => {
  const graph = (name, seed, mask = "9") => ({
    1: { class_type: "LoadAudio", inputs: { audio: name } },
    2: { class_type: "X", inputs: { audio: ["1", 0], list: [1, 2] } },
    [mask]: { class_type: "SA3_InpaintMask", inputs: { audio: ["2", 0], regions: "1-2" } },
    10: { class_type: "SA3_Sampler", inputs: { latent: [mask, 0], seed } },
  })
  const run = (prompt, outputs) => ({ prompt: [0, "", prompt, {}, []], outputs })
  const node = { id: 9, type: "SA3_InpaintMask" }
  const runs = [run(graph("a.wav", 1), { 9: "old" }), run(graph("a.wav", 2), { 9: "a" }), run(graph("b.wav", 2), { 9: "b" }), run(graph("a.wav", 3), {})]
  assert.equal(recall(runs, graph("a.wav", 4), node), "a")
  assert.equal(recall(runs, graph("c.wav", 4), node), null)
  assert.equal(recall(runs, graph("a.wav", 4), { ...node, id: 8 }), null)
  assert.equal(recall([run(graph("a.wav", 1, "5:9"), { "5:9": "inside" })], graph("a.wav", 2, "5:9"), node), "inside")
})

test("a kept result is found in a long chain of two links each, in a cycle, and beside names of every object", { timeout: 5000 }, () => {
  const chain = first => {
    const nodes = { 0: { class_type: "A", inputs: { first } } }
    for (let i = 1; i < 60; i++) nodes[i] = { class_type: "B", inputs: { model: [`${i - 1}`, 0], clip: [`${i - 1}`, 1] } }
    return nodes
  }
  const of = (prompt, node) => recall([{ prompt: [0, "", prompt], outputs: { [node.id]: "it" } }], structuredClone(prompt), node)
  const last = { id: 59, type: "B" }
  assert.equal(of(chain(1), last), "it")
  assert.equal(recall([{ prompt: [0, "", chain(1)], outputs: { 59: "it" } }], chain(2), last), null)
  assert.equal(of({ 1: { class_type: "B", inputs: { a: ["2", 0] } }, 2: { class_type: "B", inputs: { a: ["1", 0] } } }, { id: 1, type: "B" }), "it")
  assert.equal(of({ 1: { class_type: "B", inputs: { a: ["constructor", 0] } } }, { id: 1, type: "B" }), "it")
})

test("a subgraph that passes its own output back to itself ends the search for a result", () => {
  const held = { inputs: [{ linkIds: [1] }], getLink: () => ({ target_id: -20, target_slot: 0 }) }
  const graph = graphWith({ 1: { type: "SA3_InpaintMask", outputs: [{ type: "LATENT" }] }, 2: { subgraph: held, inputs: { samples: 1 } } })
  const holder = graph.getNodeById(2)
  held.rootGraph = graph
  graph.links[7] = { id: 7, origin_id: 2, target_id: 2, target_slot: 0 }
  holder.outputs = [{ type: "LATENT", links: [7] }]
  assert.equal(findResult(graph.getNodeById(1), {}), null)
})

test("a cached node below a ladder of shared nodes is recalled at once", () => {
  const prompt = { 0: { class_type: "LoadAudio", inputs: { audio: "a.wav" } } }
  for (let i = 1; i <= 60; i++) prompt[i] = { class_type: "X", inputs: { a: [`${i - 1}`, 0], b: [`${i - 1}`, 0] } }
  const changed = { ...prompt, 0: { class_type: "LoadAudio", inputs: { audio: "b.wav" } } }
  const runs = [{ prompt: [0, "", prompt, {}, []], outputs: { 60: "found" } }]
  assert.equal(recall(runs, structuredClone(prompt), { id: 60, type: "X" }), "found")
  assert.equal(recall(runs, changed, { id: 60, type: "X" }), null)
})

test("inside a subgraph, the result of a node outside with the same id is not shown", () => {
  const shown = { filename: "inside.wav", subfolder: "", type: "temp" }
  const inner = Object.assign(graphWith({ 1: { type: "X" }, 9: { inputs: { audio: 1 } } }), { id: "inner" })
  inner.rootGraph = graphWith({ 9: { type: "X" } })
  assert.deepEqual(findSource(editorOf(inner), { 9: { sa3_waveform: [shown] } }).files, [])
  assert.deepEqual(findSource(editorOf(inner), { "inner:9": { sa3_waveform: [shown] } }).files, [shown])
})

test("a promoted input takes its value from the widget outside, unless several nodes contain the subgraph", () => {
  const widget = { name: "regions", value: "1-2" }
  const held = graphWith({ 9: { inputs: { regions: -10 } } })
  const around = { subgraph: held, inputs: { regions: null }, getWidgetFromSlot: ({ name }) => (name === "regions" ? widget : undefined) }
  held.rootGraph = graphWith({ 2: around })
  assert.equal(promoted(editorOf(held), "regions"), widget)
  assert.equal(promoted(editorOf(held), "seconds"), null)
  held.rootGraph = graphWith({ 1: { type: "X" }, 2: { ...around, inputs: { regions: 1 } } })
  assert.equal(promoted(editorOf(held), "regions"), null, "a node outside computes the value")
  held.rootGraph = graphWith({ 2: around, 3: around })
  assert.equal(promoted(editorOf(held), "regions"), null)
})

test("addresses escape names", () => {
  assert.equal(fileUrl({ apiURL: path => `/api${path}` }, { ...FILE, filename: "a&b.wav" }), "/api/view?filename=a%26b.wav&subfolder=&type=input")
})
