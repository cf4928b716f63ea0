// Fetches and decodes recordings, and caches the last few.

import { sampleRateOf } from "./header.js"
import { Peaks } from "./peaks.js"

const LONGEST = 1200 // seconds; the browser decodes the whole clip into memory
const KEPT = 3 // clips
const TIMEOUT = 5000 // milliseconds for the header: a browser with too many open players never loads it
const RATES = [3000, 384000] // Hz that every browser can decode at
const clips = new Map() // URL -> promise of a clip, the least recently used first

/** Why a clip cannot be shown. reason: missing, unreadable or long. detail: the HTTP status, or the length in seconds. */
class AudioError extends Error {
  constructor(reason, detail = "") {
    super(`${reason} ${detail}`)
    Object.assign(this, { reason, detail })
  }
}

/**
 * {url, duration, rate, samples, peaks, coarse}: seconds, Hz, the mean of the channels, Peaks of all channels. Rejects with AudioError.
 * coarse: too long to be decoded at its own rate. reduced: the file is at a low rate, so it may be long. Failures are not cached.
 */
export function loadClip(url, reduced = false) {
  const clip = clips.get(url) ?? decode(url, reduced)
  clips.delete(url)
  clips.set(url, clip)
  clip.catch(() => clips.delete(url))
  if (clips.size > KEPT) clips.delete(clips.keys().next().value)
  return clip
}

/** The AudioBuffer of a file at its own sample rate. Rejects with AudioError. */
export async function decodeFile(url) {
  const bytes = new Uint8Array(await fetchFile(url))
  const rate = sampleRateOf(bytes) ?? 48000
  try {
    const context = new OfflineAudioContext(1, 1, Math.min(Math.max(rate, RATES[0]), RATES[1]))
    return await context.decodeAudioData(bytes.buffer)
  } catch {
    throw new AudioError("unreadable")
  }
}

async function decode(url, reduced) {
  const duration = await durationOf(url)
  if (duration > LONGEST && !reduced) throw new AudioError("long", Math.round(duration))
  const buffer = await decodeFile(url)
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i))
  const peaks = await Peaks.build(channels, pause)
  const samples = await mean(channels)
  return { url, duration: buffer.duration, rate: buffer.sampleRate, samples, peaks, coarse: buffer.duration > LONGEST }
}

async function fetchFile(url) {
  let response
  try {
    response = await fetch(url)
    if (response.ok) return await response.arrayBuffer()
  } catch {
    throw new AudioError("missing")
  }
  throw new AudioError("missing", response.status)
}

/** Seconds from the file's header, without decoding; 0 where the browser does not report them. */
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
    const timer = setTimeout(end, TIMEOUT, 0)
    audio.preload = "metadata"
    audio.onloadedmetadata = () => end(audio.duration)
    audio.onerror = () => end(0)
    audio.src = url
  })
}

/** The mean of the channels, sample by sample. */
async function mean(channels) {
  const samples = channels[0].slice()
  for (const other of channels.slice(1)) {
    await pause()
    for (let i = 0; i < samples.length; i++) samples[i] += other[i]
  }
  if (channels.length > 1) for (let i = 0; i < samples.length; i++) samples[i] /= channels.length
  return samples
}

/** Lets the page draw and handle events. */
function pause() {
  return new Promise(resolve => setTimeout(resolve))
}
