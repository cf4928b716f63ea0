// The sample rate of an audio file, so that the browser decodes it without resampling.

/** Hz from the bytes of a WAV, FLAC, MP3 or Ogg file, null where no header is found. */
export function sampleRateOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const word = at => (at + 4 <= bytes.length ? String.fromCharCode(...bytes.subarray(at, at + 4)) : "")
  if (word(0) === "RIFF" && word(8) === "WAVE") return wavRate(view, word)
  if (word(0) === "fLaC" && bytes.length > 21) return (bytes[18] << 12) | (bytes[19] << 4) | (bytes[20] >> 4)
  if (word(0) === "OggS") return oggRate(view, bytes)
  const start = word(0).startsWith("ID3") ? 10 + ((bytes[6] << 21) | (bytes[7] << 14) | (bytes[8] << 7) | bytes[9]) : 0
  return mp3Rate(bytes, start)
}

function wavRate(view, word) {
  for (let at = 12; at + 16 <= view.byteLength; ) {
    if (word(at) === "fmt ") return view.getUint32(at + 12, true)
    const size = view.getUint32(at + 4, true)
    at += 8 + size + (size % 2)
  }
  return null
}

function oggRate(view, bytes) {
  const at = 27 + bytes[26] // the first packet follows the first page's table
  const name = String.fromCharCode(...bytes.subarray(at, at + 8))
  if (name === "OpusHead") return 48000
  return name.startsWith("\x01vorbis") && at + 16 <= bytes.length ? view.getUint32(at + 12, true) : null
}

function mp3Rate(bytes, start) {
  const rates = { 3: [44100, 48000, 32000], 2: [22050, 24000, 16000], 0: [11025, 12000, 8000] } // by MPEG version
  for (let at = start; at + 3 < Math.min(bytes.length, start + 8192); at++) {
    if (bytes[at] === 0xff && (bytes[at + 1] & 0xe6) === 0xe2) return rates[(bytes[at + 1] >> 3) & 3]?.[(bytes[at + 2] >> 2) & 3] ?? null
  }
  return null
}
