// A recording as the picture needs it: fetched, decoded, and kept for the next editor that shows it.

import { sampleRateOf } from "./header.js"
import { Peaks } from "./peaks.js"

export const LONGEST = 1200 // seconds; the browser decodes the whole clip into memory
const KEPT = 3
const PATIENCE = 5000 // milliseconds for the header; a browser with too many players open never answers
const RATES = [3000, 384000] // what browsers decode at
const clips = new Map() // address -> promise of a clip, the least recently used first

/** Why there is no clip. `reason` is one of missing, unreadable, long; `detail` a number or word for the sentence. */
export class AudioError extends Error {
  constructor(reason, detail = "") {
    super(`${reason} ${detail}`)
    Object.assign(this, { reason, detail })
  }
}

/**
 * {url, duration, rate, samples, peaks}: seconds, Hz, the mean of the channels, their outline. Rejects with AudioError.
 * A clip that failed is asked for again the next time.
 */
export function loadClip(url) {
  const clip = clips.get(url) ?? decode(url)
  clips.delete(url)
  clips.set(url, clip)
  clip.catch(() => clips.delete(url))
  if (clips.size > KEPT) clips.delete(clips.keys().next().value)
  return clip
}

async function decode(url) {
  const duration = await durationOf(url)
  if (duration > LONGEST) throw new AudioError("long", Math.round(duration))
  const bytes = new Uint8Array(await fetchFile(url))
  const rate = sampleRateOf(bytes) ?? 48000
  let buffer
  try {
    const context = new OfflineAudioContext(1, 1, Math.min(Math.max(rate, RATES[0]), RATES[1]))
    buffer = await context.decodeAudioData(bytes.buffer)
  } catch {
    throw new AudioError("unreadable")
  }
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i))
  const peaks = await Peaks.build(channels, breath)
  const samples = await mean(channels)
  return { url, duration: buffer.duration, rate: buffer.sampleRate, samples, peaks }
}

async function fetchFile(url) {
  let answer
  try {
    answer = await fetch(url)
    if (answer.ok) return await answer.arrayBuffer()
  } catch {
    throw new AudioError("missing")
  }
  throw new AudioError("missing", answer.status)
}

/** Seconds, by the file's header alone; 0 where the player cannot tell. */
function durationOf(url) {
  return new Promise(resolve => {
    const audio = new Audio()
    const end = seconds => {
      audio.onloadedmetadata = audio.onerror = null
      clearTimeout(timer)
      audio.removeAttribute("src")
      audio.load()
      resolve(Number.isFinite(seconds) ? seconds : 0)
    }
    const timer = setTimeout(end, PATIENCE, 0)
    audio.preload = "metadata"
    audio.onloadedmetadata = () => end(audio.duration)
    audio.onerror = () => end(0)
    audio.src = url
  })
}

async function mean(channels) {
  const samples = channels[0].slice()
  for (const other of channels.slice(1)) {
    await breath()
    for (let i = 0; i < samples.length; i++) samples[i] += other[i]
  }
  if (channels.length > 1) for (let i = 0; i < samples.length; i++) samples[i] /= channels.length
  return samples
}

/** Lets the page draw and answer before more is computed. */
function breath() {
  return new Promise(resolve => setTimeout(resolve))
}
