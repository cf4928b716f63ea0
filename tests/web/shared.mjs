// What the tests share.

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"

/** A file of tests/data, which the Python tests read as well. */
export function data(name) {
  return JSON.parse(readFileSync(new URL(`../data/${name}`, import.meta.url), "utf8"))
}

export function near(value, wanted, tolerance = 1e-9) {
  assert.ok(Math.abs(value - wanted) <= tolerance, `${value} is not within ${tolerance} of ${wanted}`)
}

/** A deterministic generator of numbers in [0, 1). */
export function random(seed = 1) {
  return () => (seed = (seed * 48271) % 2147483647) / 2147483647
}

export const RATE = 44100

/** Float32Array of a sine. */
export function sine(pitch, samples, amplitude = 0.5) {
  return Float32Array.from({ length: samples }, (_, i) => amplitude * Math.sin((2 * Math.PI * pitch * i) / RATE))
}
