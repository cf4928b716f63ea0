// Short-time spectra of a signal on a logarithmic frequency scale.

const SIZE = 1024 // samples of a window; 23 ms at 44.1 kHz
const FLOOR = -90 // dBFS, drawn as silence
const LOWEST = 40 // Hz
const HIGHEST = 18000

/** Power spectra of real windows by a radix-2 FFT. */
export class Fft {
  constructor(size = SIZE) {
    this.size = size
    this.re = new Float64Array(size)
    this.im = new Float64Array(size)
    this.power = new Float32Array(size / 2)
    this.window = Float64Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size)) // Hann
    this.cos = Float64Array.from({ length: size / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / size))
    this.sin = Float64Array.from({ length: size / 2 }, (_, i) => -Math.sin((2 * Math.PI * i) / size))
    const bits = Math.log2(size)
    this.reversed = Uint32Array.from({ length: size }, (_, i) => {
      let out = 0
      for (let bit = 0; bit < bits; bit++) out |= ((i >> bit) & 1) << (bits - 1 - bit)
      return out
    })
  }

  /** Power of each bin of the window that begins at sample `from`; 1 = a full-scale sine. The array is reused by the next call. */
  at(samples, from) {
    const { size, re, im, reversed, window } = this
    for (let i = 0; i < size; i++) {
      const n = from + i
      re[reversed[i]] = n >= 0 && n < samples.length ? samples[n] * window[i] : 0
      im[i] = 0
    }
    this.transform()
    const scale = (4 / size) ** 2 // a Hann window halves the amplitude, and half of it is at negative frequencies
    for (let bin = 0; bin < size / 2; bin++) this.power[bin] = (re[bin] ** 2 + im[bin] ** 2) * scale
    return this.power
  }

  transform() {
    const { size, re, im, cos, sin } = this
    for (let half = 1, stride = size / 2; half < size; half *= 2, stride /= 2) {
      for (let start = 0; start < size; start += 2 * half) {
        for (let k = 0; k < half; k++) {
          const a = start + k
          const b = a + half
          const c = cos[k * stride]
          const s = sin[k * stride]
          const re_b = re[b] * c - im[b] * s
          const im_b = re[b] * s + im[b] * c
          re[b] = re[a] - re_b
          im[b] = im[a] - im_b
          re[a] += re_b
          im[a] += im_b
        }
      }
    }
  }
}

/** The fractional range of bins [from, to] of each row, top row first, in equal steps of pitch. */
export function rowBins(rows, rate, size = SIZE) {
  const top = Math.min(HIGHEST, rate / 2)
  const bin = row => Math.min((LOWEST * (top / LOWEST) ** (1 - row / rows) * size) / rate, size / 2 - 2)
  return Array.from({ length: rows }, (_, row) => [bin(row + 1), bin(row)])
}

/** Loudness 0..1 of each row around sample `centre`: the maximum of `windows` windows spread over `hop` samples. */
export function column(fft, samples, centre, hop, windows, bins, out) {
  out.fill(0)
  for (let i = 0; i < windows; i++) {
    const power = fft.at(samples, Math.round(centre + ((i + 0.5) / windows - 0.5) * hop - fft.size / 2))
    for (let row = 0; row < bins.length; row++) {
      const [from, to] = bins[row]
      let loudest = Math.max(between(power, from), between(power, to))
      for (let bin = Math.ceil(from); bin < to; bin++) if (power[bin] > loudest) loudest = power[bin]
      const shade = 1 - (10 * Math.log10(loudest + 1e-12)) / FLOOR
      if (shade > out[row]) out[row] = Math.min(shade, 1)
    }
  }
  return out
}

function between(power, bin) {
  const low = Math.floor(bin)
  return power[low] + (bin - low) * (power[low + 1] - power[low])
}
