// Playing without a page: which part of a clip is played and repeated. The audio of the browser is replaced by a record of the calls.

import assert from "node:assert/strict"
import { afterEach, beforeEach, test } from "node:test"
import { ACTIONS } from "../../web/waveform/actions.js"
import { LoopPlayer } from "../../web/waveform/loop_player.js"
import { Player } from "../../web/waveform/player.js"
import { Sounds } from "../../web/waveform/sounds.js"

globalThis.document = { createElement: () => ({ getContext: () => ({}) }) } // theme.js has a canvas
const { WaveformEditor } = await import("../../web/waveform/editor.js")

const CLIP = { url: "a.wav", duration: 4 }
const names = ["Audio", "AudioContext", "OfflineAudioContext", "fetch", "requestAnimationFrame", "cancelAnimationFrame"]
const before = names.map(name => globalThis[name])
let started = []

beforeEach(() => {
  started = []
  class Source {
    connect() {}
    disconnect() {}
    stop() {}
    start(_, at) {
      started.push([this.buffer.name, at, this.loopStart, this.loopEnd])
    }
  }
  const fakes = [
    class {
      addEventListener() {}
      pause() {}
      play() {
        started.push(["once", this.currentTime])
      }
    },
    class {
      currentTime = 0
      resume() {}
      createBufferSource() {
        return new Source()
      }
    },
    class {
      decodeAudioData(bytes) {
        return { duration: 4, name: new TextDecoder().decode(bytes) }
      }
    },
    async url => ({ ok: true, arrayBuffer: () => new TextEncoder().encode(url).buffer }),
    () => 0,
    () => {},
  ]
  names.forEach((name, i) => (globalThis[name] = fakes[i]))
})
afterEach(() => names.forEach((name, i) => (globalThis[name] = before[i])))

test("a loop repeats its region, also one that ends with the clip; without an end it repeats the clip", async () => {
  const player = new Player(() => {}, () => {})
  await player.play(CLIP, 2, 4, true)
  await player.play(CLIP, 2, 3, true, 2.5)
  await player.play(CLIP, 2, 9, true)
  await player.play(CLIP, 2, Infinity, true)
  assert.deepEqual(started, [["a.wav", 2, 2, 4], ["a.wav", 2.5, 2, 3], ["a.wav", 2, 2, 4], ["a.wav", 2, 0, 4]])
})

test("of two loops that are decoded at the same time, the later one plays; stop() keeps no sound in memory", async () => {
  const answers = []
  globalThis.fetch = url => new Promise(resolve => answers.push(() => resolve({ ok: true, arrayBuffer: () => new TextEncoder().encode(url).buffer })))
  const round = new LoopPlayer()
  const both = [round.play("a.wav", 0, 0, 1), round.play("b.wav", 0, 0, 1)]
  answers[1]()
  await both[1]
  answers[0]()
  await both[0]
  assert.deepEqual(started, [["b.wav", 0, 0, 1]])
  round.stop()
  assert.ok(!Object.values(round).some(value => value?.duration))
})

/** What playFrom() and compare() need of an editor. */
function editorWith(shown, settings = {}) {
  const editor = Object.create(WaveformEditor.prototype)
  const sounds = { shown, after: false, compare: async after => Object.assign(sounds, { after }) }
  const player = new Player(() => {}, () => (editor.head = null))
  return Object.assign(editor, { settings: { loop: false, ...settings }, sounds, player, head: null, cursor: 0, repaint() {}, saveSettings() {} })
}

test("switching to the result or to a loop stays in the region that plays", async () => {
  const editor = editorWith({ clip: CLIP, at: 0 })
  await editor.playFrom(1, 2)
  editor.head = 1.5
  await editor.compare()
  await new Promise(setImmediate)
  assert.deepEqual([started.at(-1), editor.player.end], [["once", 1.5], 2])
  editor.head = 1.75
  ACTIONS.loop(editor)
  await new Promise(setImmediate)
  assert.deepEqual(started.at(-1), ["a.wav", 1.75, 1, 2])
})

test("the player stops when the result that it plays is replaced, not when the recording plays", () => {
  let stops = 0
  const sounds = new Sounds({ player: { stop: () => stops++ }, repaint() {}, texts: {} }, () => {})
  const placed = { clip: CLIP, at: 0, tiles: { stop() {} } }
  Object.assign(sounds, { recording: placed, result: { ...placed }, resultFile: {}, after: false })
  sounds.replaceResult(null)
  assert.equal(stops, 0)
  Object.assign(sounds, { result: { ...placed }, resultFile: {}, after: true })
  sounds.replaceResult(null)
  assert.equal(stops, 1)
})
