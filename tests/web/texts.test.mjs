// The texts that the editor and the nodes read alike, against the cases in tests/data, and the words in three languages.

import assert from "node:assert/strict"
import { test } from "node:test"
import { lastEvent } from "../../web/download/job.js"
import { WORDS } from "../../web/download/words.js"
import { formatKeep, parseKeep } from "../../web/preview/keep.js"
import { formatRegions, mergeRegions, parseRegions, RegionError } from "../../web/waveform/regions.js"
import { fill, textsFor } from "../../web/waveform/texts.js"
import { data, random } from "./shared.mjs"

const REGIONS = data("regions.json")

test("valid regions", () => {
  for (const { text, regions, written } of REGIONS.valid) {
    const merged = mergeRegions(parseRegions(text))
    assert.deepEqual(merged, regions, JSON.stringify(text))
    assert.equal(formatRegions(merged), written, JSON.stringify(text))
  }
})

test("invalid regions name their error and the faulty part", () => {
  for (const { text, error, word } of REGIONS.invalid) {
    const wanted = caught => caught instanceof RegionError && caught.reason === error && (word === undefined || caught.word === word)
    assert.throws(() => mergeRegions(parseRegions(text)), wanted, JSON.stringify(text))
  }
})

test("a region before 0, which no text can say", () => {
  assert.throws(() => mergeRegions([[-1, 1]]), { reason: "outside", word: "-1-1" })
})

test("merging sorts, covers the same time and leaves its argument alone", () => {
  const next = random()
  for (let round = 0; round < 200; round++) {
    const regions = Array.from({ length: 1 + Math.floor(8 * next()) }, () => {
      const start = Math.floor(40 * next())
      return [start, start + 1 + Math.floor(9 * next())]
    })
    const before = structuredClone(regions)
    const merged = mergeRegions(regions)
    assert.deepEqual(regions, before)
    const ticks = list => new Set(list.flatMap(([start, end]) => Array.from({ length: end - start }, (_, i) => start + i)))
    assert.deepEqual([...ticks(merged)].sort(), [...ticks(before)].sort())
    for (let i = 1; i < merged.length; i++) assert.ok(merged[i - 1][1] < merged[i][0])
  }
})

test("what is written is read back to the nanosecond", () => {
  const next = random(7)
  for (let round = 0; round < 500; round++) {
    const start = next() * 300
    const region = [start, start + 1e-6 + next()]
    const [[first, last]] = parseRegions(formatRegions([region]))
    assert.ok(Math.abs(first - region[0]) < 1e-9 && Math.abs(last - region[1]) < 1e-9)
  }
})

test("items to keep", () => {
  for (const { text, count, items } of data("keep.json")) {
    const found = parseKeep(text, count)
    assert.deepEqual(found && [...found].sort((a, b) => a - b), items, JSON.stringify(text))
  }
})

test("the shortest text for items to keep, read back to the same items", () => {
  for (const [items, text] of [[[], "none"], [[0, 1, 2, 3], "all"], [[2], "3"], [[3, 0, 2], "1, 3-4"], [[0, 1], "1-2"]]) {
    assert.equal(formatKeep(new Set(items), 4), text)
    assert.deepEqual(parseKeep(text, 4), new Set(items.sort()))
  }
})

test("a widget without a value keeps all", () => {
  assert.deepEqual(parseKeep(undefined, 2), new Set([0, 1]))
})

test("the editor's words have the same places to fill in every language", () => {
  const places = text => [...JSON.stringify(text).matchAll(/\{\w+\}/g)].map(String).sort()
  const english = textsFor("en")
  for (const language of ["zh", "ja"]) {
    const texts = textsFor(language)
    for (const [key, text] of Object.entries(english)) {
      assert.notDeepEqual(texts[key], text, `${language} ${key} is not translated`)
      assert.deepEqual(places(texts[key]), places(text), `${language} ${key}`)
      if (Array.isArray(text)) assert.equal(texts[key].length, text.length, `${language} ${key}`)
    }
  }
  assert.equal(textsFor("fr"), english)
})

test("filling words in", () => {
  assert.equal(fill("{word} of {count}, {other}", { word: "a", count: 2 }), "a of 2, ")
})

test("what happened to a download while the connection was lost", () => {
  const queue = (running, pending) => ({ queue_running: running.map(id => [0, id]), queue_pending: pending.map(id => [1, id]) })
  const history = { a: { status: { messages: [["execution_start", { prompt_id: "a" }], ["execution_error", { exception_message: "full" }]] } } }
  assert.equal(lastEvent("a", queue([], ["b", "a"]), {}), null)
  assert.deepEqual(lastEvent("a", queue(["a"], []), {}), { type: "execution_start", detail: { prompt_id: "a" } })
  assert.deepEqual(lastEvent("a", queue(["b"], []), history), { type: "execution_error", detail: { exception_message: "full", prompt_id: "a" } })
  for (const unknown of [{}, { a: {} }]) assert.equal(lastEvent("a", queue([], []), unknown).type, "gone")
})

test("the words of the loader's dialog exist in every language", () => {
  for (const language of ["zh", "ja"]) {
    assert.deepEqual(Object.keys(WORDS[language]), Object.keys(WORDS.en))
    assert.deepEqual(Object.keys(WORDS[language].uses), Object.keys(WORDS.en.uses))
    for (const [key, text] of Object.entries(WORDS.en)) {
      const say = words => (typeof words[key] === "function" ? words[key]("name") : words[key])
      assert.notDeepEqual(say(WORDS[language]), say(WORDS.en), `${language} ${key} is not translated`)
      if (typeof text === "function") assert.ok(say(WORDS[language]).includes("name"), `${language} ${key}`)
    }
  }
})
