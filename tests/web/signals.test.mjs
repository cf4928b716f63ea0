// Peaks, spectra and the headers of audio files.

import assert from "node:assert/strict"
import { test } from "node:test"
import { sampleRateOf } from "../../web/waveform/header.js"
import { extremes, Peaks } from "../../web/waveform/peaks.js"
import { column, Fft, rowBins } from "../../web/waveform/spectrum.js"
import { near, random, RATE, sine } from "./shared.mjs"

const TONE = sine(1000, 50000)

test("peaks of two channels", async () => {
  const peaks = await Peaks.build([TONE, TONE.map(value => -value / 2)])
  near(peaks.peak, 0.5, 1e-3)
  const { min, max, rms } = peaks.over(1000, 40000)
  near(max, 0.5, 1e-3)
  assert.equal(min, -max)
  near(rms, 0.5 * Math.sqrt((1 + 0.25) / 4), 0.004)
})

test("every level of the pyramid bounds the samples that it covers", async () => {
  const next = random(5)
  const samples = Float32Array.from({ length: 100_003 }, () => 2 * next() - 1)
  samples[99_999] = 3
  const peaks = await Peaks.build([samples])
  assert.equal(peaks.peak, 3)
  for (let round = 0; round < 200; round++) {
    const from = Math.floor(next() * 99_000)
    const to = from + 64 + Math.floor(next() * (samples.length - from - 64))
    const { min, max } = peaks.over(from, to)
    const part = samples.subarray(from, to)
    assert.ok(max >= part.reduce((a, b) => Math.max(a, b)) && min <= part.reduce((a, b) => Math.min(a, b)))
  }
})

test("a short range is read from the finest level", async () => {
  const samples = Float32Array.from({ length: 64 * 1024 }, (_, i) => Math.floor(i / 64) / 1024)
  const peaks = await Peaks.build([samples])
  for (const block of [0, 7, 1000]) assert.deepEqual(peaks.over(64 * block, 64 * block + 64), { min: block / 1024, max: block / 1024, rms: block / 1024 })
})

test("peaks pause between chunks", async () => {
  let pauses = 0
  await Peaks.build([new Float32Array((1 << 21) + 1)], async () => pauses++)
  assert.equal(pauses, 2)
})

test("peaks beyond the clip, and of a clip without samples", async () => {
  const peaks = await Peaks.build([TONE])
  assert.deepEqual(peaks.over(1e6, 2e6), { min: 0, max: 0, rms: 0 })
  assert.equal((await Peaks.build([new Float32Array(0)])).peak, 0)
})

test("extremes of a few samples are exact, one more to join the next column", async () => {
  const samples = Float32Array.of(0, 0.5, -0.25, 1, -1)
  const clip = { samples, peaks: await Peaks.build([samples]) }
  assert.deepEqual(extremes(clip, 0.2, 1.8), { min: -0.25, max: 0.5, rms: Math.sqrt((0.25 + 0.0625) / 3) })
  for (const [from, to] of [[-3, 0], [5, 9]]) assert.ok(extremes(clip, from, to).min > extremes(clip, from, to).max)
})

test("the spectrum of a sine peaks at its bin with its power", () => {
  const power = new Fft().at(sine(1000, 50000, 1), 20000)
  const bin = power.indexOf(Math.max(...power))
  near((bin * RATE) / 1024, 1000, RATE / 1024)
  near(power[bin], 1, 0.2)
  assert.ok(new Fft().at(TONE, 60000).every(value => value === 0), "silence beyond the clip")
})

test("the FFT equals the sum of its definition", () => {
  const next = random(11)
  const fft = new Fft(16)
  const samples = Float32Array.from({ length: 16 }, () => next())
  const power = fft.at(samples, 0)
  for (let bin = 0; bin < 8; bin++) {
    let [re, im] = [0, 0]
    for (let n = 0; n < 16; n++) {
      const value = samples[n] * (0.5 - 0.5 * Math.cos((2 * Math.PI * n) / 16))
      re += value * Math.cos((2 * Math.PI * bin * n) / 16)
      im -= value * Math.sin((2 * Math.PI * bin * n) / 16)
    }
    near(power[bin], (re ** 2 + im ** 2) * (4 / 16) ** 2, 1e-6)
  }
})

test("the rows of the spectrogram: equal steps in pitch, the loudest where the tone is", () => {
  const bins = rowBins(50, RATE)
  for (let row = 1; row < 50; row++) assert.equal(bins[row][1], bins[row - 1][0])
  const rows = column(new Fft(), TONE, 20000, 100, 1, bins, new Float32Array(50))
  const [low, high] = bins[rows.indexOf(Math.max(...rows))].map(bin => (bin * RATE) / 1024)
  assert.ok(low - 50 < 1000 && high + 50 > 1000)
  assert.equal(rows[5], 0)
})

const bytes = (...parts) => Uint8Array.from(parts.flatMap(part => (typeof part === "string" ? [...part].map(c => c.charCodeAt(0)) : part)))
const zeros = count => Array(count).fill(0)
const rate = (value, length) => Array.from({ length }, (_, i) => (value >> (8 * i)) & 255)
const FMT = ["fmt ", rate(16, 4), [1, 0, 2, 0], rate(48000, 4), zeros(8)]

const HEADERS = {
  "a WAV": [["RIFF", zeros(4), "WAVE", ...FMT], 48000],
  "a WAV with an odd chunk first": [["RIFF", zeros(4), "WAVE", "junk", rate(3, 4), zeros(4), ...FMT], 48000],
  "a WAV without a format": [["RIFF", zeros(4), "WAVE", "junk", rate(4, 4), zeros(4)], null],
  "a FLAC": [["fLaC", zeros(14), [0x0b, 0xb8, 2, 0, 0]], 48000],
  "Ogg Vorbis": [["OggS", zeros(22), [1, 30], "\x01vorbis", zeros(5), rate(44100, 4)], 44100],
  "Ogg Opus": [["OggS", zeros(22), [1, 19], "OpusHead"], 48000],
  "Ogg with another codec": [["OggS", zeros(22), [1, 19], "Speex   "], null],
  "an MP3": [[[0xff, 0xfb, 0x90, 0x00]], 44100],
  "an MP3 after an ID3 tag": [["ID3", [4, 0, 0], [0, 0, 0, 3], zeros(3), [0xff, 0xf3, 0x94, 0x00]], 24000],
  "text": [["no audio at all, but long enough to look"], null],
  "nothing": [[], null],
}

for (const [name, [parts, wanted]] of Object.entries(HEADERS)) {
  test(`the sample rate of ${name}`, () => assert.equal(sampleRateOf(bytes(...parts)), wanted))
}

test("a header that is cut off anywhere never throws", () => {
  for (const [parts] of Object.values(HEADERS)) {
    const whole = bytes(...parts)
    for (let length = 0; length < whole.length; length++) sampleRateOf(whole.subarray(0, length))
  }
})
